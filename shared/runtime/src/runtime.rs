//! The trait for the scheduler.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use async_trait::async_trait;
use futures::Stream;

use crate::{BoxSpec, Capacity, Change, Observed, PreflightError, RuntimeError};

pub type ChangeStream = Pin<Box<dyn Stream<Item = Change> + Send>>;

/// Whether a changed network policy was seen in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyApplication {
    /// It is in force.
    Confirmed,
    /// The cluster has it, and no check has shown within the driver's time that it is in force.
    Unconfirmed,
}

/// Creates, observes and removes a cluster's boxes.
///
/// Several scheduler replicas may call a driver at the same time, and each may be killed at any
/// point. Therefore every driver keeps these invariants:
///
/// * I1. Every call may be repeated, by any replica, concurrently, and after a killed call. The
///   outcome is as if it had run once.
/// * I2. `ensure` and `apply_network_policy` with a generation lower than the cluster's return
///   [`RuntimeError::Fenced`], so that a slow replica cannot undo the work of a fast one.
/// * I3. No call waits longer than its configured deadline.
/// * I4. `list` is complete and `watch` is fast: `list` finds a change that `watch` missed.
/// * I5. An object without this deployment's label is never listed, changed or removed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Checks whether this cluster can run the spec at all: runtime class, node selector, limits.
    /// Cheap; called before an environment is accepted.
    async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError>;

    /// Creates and starts the box. Returns its state at the end: usually `Running`; `Starting` while
    /// something slow (an image pull) continues; or `Failed` when it can never run.
    ///
    /// A warm spec makes a box that waits for [`Self::claim`]. A spec that is not warm claims the warm
    /// box of its id.
    async fn ensure(&self, spec: &BoxSpec, generation: i64) -> Result<Observed, RuntimeError>;

    /// Gives the warm box `spec.id` to the owner of `spec`, which is not warm: its network policy first,
    /// then its user, its variables and its main command. It keeps its id, token, address and hostname. `address`
    /// is that of the warm box in its last observation as `Running`.
    ///
    /// Neither starts the box again nor asks the cluster while boxd answers; a driver that keeps the
    /// generation there alone does not compare it. The caller has matched everything that is
    /// fixed when a box is created: image, resources, isolation except the network policy and
    /// `run_as_user`, and where the cluster enforces network policies, that policy too. `run_as_user` is
    /// given to a box that was created without it, or as root; boxd refuses it if it is not root.
    ///
    /// Succeeds again for the same claim, also when the command has ended since, and the box with it: the
    /// claim that boxd has recorded is compared. Another claim is [`RuntimeError::NotClaimable`], or as
    /// here: a boxd that does not answer within the deadline of a connection is
    /// [`RuntimeError::Unreachable`]. The caller removes that box.
    ///
    /// [`Self::ensure`] of the same spec completes a claim: it records for the cluster what this call
    /// leaves out (labels, annotations), and claims a box whose caller was killed before this call. The
    /// caller calls it soon after the claim.
    ///
    /// Returns `Running` since now.
    async fn claim(
        &self,
        spec: &BoxSpec,
        generation: i64,
        address: SocketAddr,
    ) -> Result<Observed, RuntimeError>;

    /// Replaces the network policy of a running box by the spec's. The box has the old policy or the new
    /// one at each moment, and keeps the new one: also when its rules are lost and restored. May fail
    /// for a box that does not run.
    async fn apply_network_policy(
        &self,
        spec: &BoxSpec,
        generation: i64,
    ) -> Result<PolicyApplication, RuntimeError>;

    /// Ends the box's processes: SIGTERM, then SIGKILL after `grace` (zero: at once). Its last
    /// output stays readable until [`Self::remove`]. Succeeds for an unknown id.
    async fn stop(&self, id: &EnvironmentId, grace: Duration) -> Result<(), RuntimeError>;

    /// Removes everything of the box: processes, mounts, network, firewall rules, files. Stops it
    /// first if it runs. Succeeds for an unknown id.
    async fn remove(&self, id: &EnvironmentId) -> Result<(), RuntimeError>;

    /// Observes one box; `None` if the cluster has nothing of it.
    async fn get(&self, id: &EnvironmentId) -> Result<Option<Observed>, RuntimeError>;

    /// Observes every box of this deployment, including incomplete ones.
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError>;

    /// Streams changes from now on. Ends when the connection to the cluster is lost; the caller calls
    /// again. The first item is always `Change { id: None }`. The caller may handle a change before it
    /// polls again: the stream holds nothing meanwhile that another call waits for.
    async fn watch(&self) -> Result<ChangeStream, RuntimeError>;

    async fn capacity(&self) -> Result<Capacity, RuntimeError>;

    /// The digest of the content that a new box of this image would have without a pull, or that the last
    /// one had if the cluster shows no more; `None` when the cluster does not have the image, or its
    /// driver cannot know it.
    async fn image_digest(&self, _image: &str) -> Result<Option<String>, RuntimeError> {
        Ok(None)
    }

    /// Whether a box of this image without `run_as_user` runs as root, so that its claim may give it another
    /// user. False when the driver cannot know it.
    async fn image_is_of_root(&self, _image: &str) -> Result<bool, RuntimeError> {
        Ok(false)
    }
}
