//! What a driver sees of its boxes. Facts only: what they mean for an environment
//! is decided by the scheduler.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::{Bytes, MilliCpu};
use chrono::{DateTime, Utc};

/// One box as the cluster has it now.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    pub id: EnvironmentId,
    /// The generation that [`crate::Runtime::ensure`] was last given for it.
    pub generation: i64,
    pub phase: BoxPhase,
    /// When the cluster began to make it.
    pub created_at: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum BoxPhase {
    /// Not serving yet: an image is pulled, a sandbox is set up.
    Starting { message: String },
    /// boxd answers at this address.
    Running {
        address: SocketAddr,
        started_at: DateTime<Utc>,
    },
    /// It will never run, or will never run again without a new `ensure` of a new id.
    Failed {
        reason: FailureReason,
        message: String,
    },
    /// The main command, and with it boxd, ended. Its last output can still be read.
    Exited {
        exit_code: i32,
        reason: ExitReason,
        message: String,
        finished_at: DateTime<Utc>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// By itself.
    Exited,
    /// Stopped by [`crate::Runtime::stop`].
    Stopped,
    OomKilled,
    /// Over its storage limit, or pushed out by its node.
    Evicted,
    NodeLost,
}

/// Why a box cannot start; each maps to one `status_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    ImagePull,
    /// The image is there but cannot run: no such user, bad config.
    ImageInvalid,
    Unschedulable,
    Quota,
    RuntimeClass,
}

/// A hint that a box may have changed. `None`: anything may have (the watch was
/// re-established); call [`crate::Runtime::list`].
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub id: Option<EnvironmentId>,
}

/// What a cluster has, for placement and for `/health`.
#[derive(Clone, Debug, PartialEq)]
pub struct Capacity {
    /// "containerd 1.6.20", "v1.36.1".
    pub version: String,
    pub nodes: u32,
    pub total_cpu: MilliCpu,
    pub total_memory: Bytes,
    /// Not promised to a box yet.
    pub available_cpu: MilliCpu,
    pub available_memory: Bytes,
    pub available_storage: Bytes,
    pub labels: BTreeMap<String, String>,
    /// RuntimeClasses or CRI handlers that a box may name.
    pub runtime_classes: Vec<String>,
}
