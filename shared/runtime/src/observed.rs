//! A driver's observations of its boxes. The scheduler decides what they mean for an environment.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use agentbox_contracts::environment::LimitEnforcement;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::{Bytes, MilliCpu};
use chrono::{DateTime, Utc};

/// One box as the cluster has it now.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    pub id: EnvironmentId,
    /// The generation of the last [`crate::Runtime::ensure`].
    pub generation: i64,
    pub phase: BoxPhase,
    /// When its creation began.
    pub created_at: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum BoxPhase {
    /// Not running yet: an image is pulled, or a sandbox is set up.
    Starting { message: String },
    /// boxd answers at this address.
    Running {
        address: SocketAddr,
        started_at: DateTime<Utc>,
    },
    /// The box will never run. Only a box with a new id can.
    Failed {
        reason: FailureReason,
        message: String,
    },
    /// The main command ended, and boxd with it. The last output can still be read.
    Exited {
        exit_code: i32,
        reason: ExitReason,
        message: String,
        finished_at: DateTime<Utc>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The main command ended by itself.
    Exited,
    /// Stopped by [`crate::Runtime::stop`].
    Stopped,
    OomKilled,
    /// Over its storage limit, or evicted by its node.
    Evicted,
    NodeLost,
}

/// The reason that a box cannot start. Each maps to one `status_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    ImagePull,
    /// The image was pulled but cannot run: no such user, or an invalid configuration.
    ImageInvalid,
    Unschedulable,
    Quota,
    RuntimeClass,
}

/// A hint that a box may have changed. `None`: any box may have, because the watch had a gap; call
/// [`crate::Runtime::list`].
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub id: Option<EnvironmentId>,
}

/// The resources of a cluster, for placement and for `/health`.
#[derive(Clone, Debug, PartialEq)]
pub struct Capacity {
    /// For example "containerd 1.6.20" or "v1.36.1".
    pub version: String,
    pub nodes: u32,
    pub total_cpu: MilliCpu,
    pub total_memory: Bytes,
    /// The part that no box has reserved.
    pub available_cpu: MilliCpu,
    pub available_memory: Bytes,
    pub available_storage: Bytes,
    /// The storage that limits of boxes may add up to, before any overcommit; 0: not reported.
    pub total_storage: Bytes,
    pub labels: BTreeMap<String, String>,
    /// RuntimeClasses or CRI handlers that a box may name.
    pub runtime_classes: Vec<String>,
    /// How the driver enforces the limits of a box, as it is configured.
    pub enforcement: LimitEnforcement,
}
