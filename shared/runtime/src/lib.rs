//! The interface between the services and a cluster's driver.
//!
//! It has two traits, which a driver implements for each kind of cluster. Their documentation is
//! the contract, and the feature `conformance` has the test suite that every driver passes.
//!
//! * [`Runtime`] is for the scheduler: it creates, observes and removes boxes.
//! * [`BoxConnector`] is for the exec-proxy: it opens a byte stream to a box's `boxd`, and reads the
//!   last output of a box that has ended.
//!
//! Owns what every driver shares: the specification of a box, its parsed network policy with the
//! address ranges, the rules that hold on every cluster, the bounds of a box on what it shares with
//! others, the pauses between retries, the texts of failed image pulls and starts, and the metric of
//! the stages of a create. Never uses a cluster's API.

pub mod address_ranges;
pub mod bounds;
mod claim;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod connector;
pub mod defaults;
mod error;
pub mod image_pull;
pub mod image_reference;
pub mod metrics;
mod network_policy;
mod observed;
pub mod preflight;
pub mod public_addresses;
mod registry_credential;
mod retries;
mod rights;
mod runtime;
mod spec;
pub mod start_failure;

pub use claim::{claim_of, configure_claimed};
pub use connector::{BoxConnector, BoxStream, Usage};
pub use error::{IMAGE_PULL, PreflightError, RuntimeError};
pub use network_policy::{IngressPort, NetworkPolicy, NetworkPolicyError};
pub use observed::{BoxPhase, Capacity, Change, ExitReason, FailureReason, Observed};
pub use registry_credential::RegistryCredential;
pub use retries::Retries;
pub use rights::CAPABILITIES;
pub use runtime::{ChangeStream, PolicyApplication, Runtime};
pub use spec::{BoxSpec, Isolation, Resources, SecurityContext, Toleration};
