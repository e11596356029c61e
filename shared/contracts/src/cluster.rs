//! Clusters as an operator sees them, and the scheduler's RPCs about them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The time after which a drain ends the environments that are left, in seconds, if the request has
/// none.
pub const DEFAULT_DRAIN_TIMEOUT_S: u64 = 3_600;
/// The longest time after which a drain ends the environments that are left, in seconds.
pub const MAX_DRAIN_TIMEOUT_S: u64 = 7 * 24 * 3_600;

/// Whether a cluster takes new environments: `active` does. `cordoned` keeps those that it has,
/// `draining` ends those that are left at its deadline, and `drained` has none.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "active"))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum SchedulingState {
    /// It takes new environments.
    Active,
    /// It takes no new environments, and keeps those that it has.
    Cordoned,
    /// It takes no new environments. Those that are left at the deadline are ended.
    Draining,
    /// It was drained: it takes no new environments, and has none.
    Drained,
}

impl SchedulingState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// The environments of a cluster that have not ended, by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentCounts {
    pub pending: u64,
    pub running: u64,
    pub terminating: u64,
}

impl EnvironmentCounts {
    #[must_use]
    pub const fn total(self) -> u64 {
        self.pending
            .saturating_add(self.running)
            .saturating_add(self.terminating)
    }
}

/// The resources of the nodes of a cluster together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterCapacity {
    pub nodes: u32,
    pub total_cpu_milli: u64,
    pub total_memory_bytes: u64,
    pub available_cpu_milli: u64,
    pub available_memory_bytes: u64,
}

/// One cluster of the deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    pub driver: String,
    pub labels: BTreeMap<String, String>,
    pub state: SchedulingState,
    /// When a drain ends the environments that are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_deadline: Option<DateTime<Utc>>,
    pub environments: EnvironmentCounts,
    /// `None` while the cluster does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<ClusterCapacity>,
    /// Empty while the cluster does not answer.
    #[serde(default)]
    pub version: String,
}

pub mod rpc {
    //! The scheduler's RPCs about clusters. The gateway's `authorize` decides who may use them.

    use super::{Cluster, Deserialize, Serialize};
    use crate::rpc::{Empty, rpc};

    /// All clusters of the configuration, in the order of their names.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListClustersReply {
        pub clusters: Vec<Cluster>,
    }

    /// One cluster, by its name.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ClusterRequest {
        pub cluster: String,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct DrainClusterRequest {
        pub cluster: String,
        /// After this time the environments that are left are ended. At most
        /// [`MAX_DRAIN_TIMEOUT_S`](super::MAX_DRAIN_TIMEOUT_S).
        pub timeout_s: u64,
    }

    rpc!(ListClusters: "scheduler", "list-clusters", Empty => ListClustersReply);
    rpc!(CordonCluster: "scheduler", "cordon-cluster", ClusterRequest => Cluster);
    rpc!(UncordonCluster: "scheduler", "uncordon-cluster", ClusterRequest => Cluster);
    rpc!(DrainCluster: "scheduler", "drain-cluster", DrainClusterRequest => Cluster);
}
