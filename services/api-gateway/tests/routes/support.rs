//! Shared by the tests of the routes: systems, callers, and readers of streams.

pub mod access;
pub mod answer;
pub mod boxes;
pub mod caller;
pub mod executions;
pub mod site;
pub mod socket;
pub mod sse;
pub mod streams;
pub mod system;

use std::time::Duration;

pub use agentbox_testing::{eventually_some, repeat_until_below};

/// The deadline for conditions that a loaded machine reaches slowly. Tests of speed measure time
/// themselves.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Polls `look` until it returns something.
pub async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    eventually_some(what, TIMEOUT, look).await
}
