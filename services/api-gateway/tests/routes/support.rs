//! Shared by the tests of the routes: systems, callers, and readers of streams.

pub mod answer;
pub mod boxes;
pub mod caller;
pub mod socket;
pub mod sse;
pub mod streams;
pub mod system;

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The deadline for conditions that a loaded machine reaches slowly. Tests of speed measure time
/// themselves.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Polls `look` until it returns something.
pub async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    within(TIMEOUT, what, look).await
}

/// As [`eventually`], with a deadline of its own.
pub async fn within<T>(deadline: Duration, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        sleep(Duration::from_millis(30)).await;
    }
}
