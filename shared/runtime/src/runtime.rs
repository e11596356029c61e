//! The scheduler's side of the seam.

use std::pin::Pin;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use async_trait::async_trait;
use futures::Stream;

use crate::{BoxSpec, Capacity, Change, Observed, PreflightError, RuntimeError};

pub type ChangeStream = Pin<Box<dyn Stream<Item = Change> + Send>>;

/// A cluster's boxes.
///
/// Invariants of every driver:
///
/// * I1. Every call may be repeated, by any replica, at the same time, and after any of
///   them was killed at any line; the outcome is as if it had run once.
/// * I2. `ensure` with a generation lower than the one the cluster holds is refused with
///   [`RuntimeError::Fenced`]: a slow replica cannot undo a fast one.
/// * I3. No call waits longer than the deadline its configuration gives it.
/// * I4. `list` is for correctness, `watch` for speed: a lost change is found by `list`.
/// * I5. What is not labelled as this deployment's is never listed, changed or removed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Whether this cluster could ever run the spec: runtime class, node selector,
    /// volumes it cannot offer. Cheap; answered before the environment is accepted.
    async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError>;

    /// Makes the box exist and run. Returns what it sees when it is done: usually
    /// `Running`, or `Starting` when something slow (an image pull) goes on without it,
    /// or `Failed` when it never will.
    async fn ensure(&self, spec: &BoxSpec, generation: i64) -> Result<Observed, RuntimeError>;

    /// Ends the box's processes: SIGTERM, then SIGKILL after `grace` (zero: at once).
    /// Its last output stays readable until [`Self::remove`]. An unknown id is success.
    async fn stop(&self, id: &EnvironmentId, grace: Duration) -> Result<(), RuntimeError>;

    /// Leaves nothing of the box behind: processes, mounts, network, firewall rules,
    /// files. Stops it first if it runs. An unknown id is success.
    async fn remove(&self, id: &EnvironmentId) -> Result<(), RuntimeError>;

    /// One box, `None` if the cluster has nothing of it.
    async fn get(&self, id: &EnvironmentId) -> Result<Option<Observed>, RuntimeError>;

    /// Every box of this deployment, half-made ones too.
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError>;

    /// Changes from now on. Ends when the connection to the cluster is lost; the caller
    /// calls again. The first item is always `Change { id: None }`.
    async fn watch(&self) -> Result<ChangeStream, RuntimeError>;

    async fn capacity(&self) -> Result<Capacity, RuntimeError>;
}
