//! The runtime seam: what the scheduler and the exec-proxy ask of a cluster.
//!
//! Two traits, each with a driver per kind of cluster. Their documentation is the
//! contract, and the feature `conformance` has the suite that every driver passes.
//!
//! * [`Runtime`] is the scheduler's: boxes come and go.
//! * [`BoxConnector`] is the exec-proxy's: a byte stream to a box's `boxd`, and the
//!   last output of a box that has stopped.
//!
//! Nothing here knows a cluster's API, and nothing outside a driver does either.

pub mod address_ranges;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod connector;
pub mod defaults;
mod error;
mod network_policy;
mod observed;
pub mod preflight;
mod rights;
mod runtime;
mod spec;

pub use connector::{BoxConnector, BoxStream, Usage};
pub use error::{PreflightError, RuntimeError};
pub use network_policy::{IngressPort, NetworkPolicy, NetworkPolicyError};
pub use observed::{BoxPhase, Capacity, Change, ExitReason, FailureReason, Observed};
pub use rights::CAPABILITIES;
pub use runtime::{ChangeStream, Runtime};
pub use spec::{BoxSpec, Isolation, Resources, SecurityContext, Toleration};
