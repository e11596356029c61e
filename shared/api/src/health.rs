//! How the system is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `healthy`; `degraded` while some cluster is away; `unhealthy` with 503.
    pub status: String,
    pub version: String,
    /// The clusters, whatever their kind.
    pub kubernetes: ClusterState,
    pub capacity: CapacityBody,
    /// Each of them, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<NamedCluster>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamedCluster {
    pub name: String,
    #[serde(flatten)]
    pub state: ClusterState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterState {
    pub connected: bool,
    /// `v1.36.1`, or `containerd 1.6.20` on one machine.
    pub version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapacityBody {
    pub total_nodes: u32,
    #[schema(example = "24")]
    pub available_cpu: String,
    #[schema(example = "48Gi")]
    pub available_memory: String,
}

/// With 503: the same, and the fields of every error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unhealthy {
    #[serde(flatten)]
    pub health: Health,
    #[serde(flatten)]
    pub error: crate::error::ErrorBody,
}

/// Whether this process lives, or should be given work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Probe {
    #[schema(example = "ok")]
    pub status: String,
}
