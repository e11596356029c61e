//! The health of the system.

use agentbox_contracts::environment::LimitEnforcement;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The health of the whole system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "status": "healthy",
    "version": "0.1.0",
    "kubernetes": {"connected": true, "version": "v1.36.1"},
    "capacity": {"total_nodes": 3, "available_cpu": "24", "available_memory": "48Gi"}
}))]
pub struct Health {
    /// `healthy`; `degraded` while a cluster is disconnected; `unhealthy`, with status 503.
    #[schema(example = "healthy", pattern = "^(healthy|degraded|unhealthy)$")]
    pub status: String,
    /// The version of AgentBox.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// All clusters together, whatever their kind.
    pub kubernetes: ClusterState,
    /// The capacity of the connected clusters together.
    pub capacity: CapacityBody,
    /// Each cluster by name. Absent if there is one only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!([{"name": "local", "connected": true, "version": "v1.36.1"}]))]
    pub clusters: Vec<NamedCluster>,
}

/// The state of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "local", "connected": true, "version": "v1.36.1"}))]
pub struct NamedCluster {
    /// The cluster's name in the configuration.
    #[schema(example = "local")]
    pub name: String,
    #[serde(flatten)]
    pub state: ClusterState,
}

/// Whether a cluster answers, and its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"connected": true, "version": "v1.36.1"}))]
pub struct ClusterState {
    /// Whether the cluster answers.
    #[schema(example = true)]
    pub connected: bool,
    /// The version of Kubernetes, or of containerd on a single machine.
    #[schema(example = "v1.36.1")]
    pub version: String,
    /// How the cluster enforces the limits of environments. Absent if the cluster does not answer,
    /// and in `kubernetes` if there are several clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<LimitEnforcement>,
}

/// The capacity of the connected clusters together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "total_nodes": 3, "available_cpu": "24", "available_memory": "48Gi"
}))]
pub struct CapacityBody {
    /// The number of machines.
    #[schema(example = 3)]
    pub total_nodes: u32,
    /// CPU cores that environments do not use yet, as a Kubernetes quantity.
    #[schema(example = "24")]
    pub available_cpu: String,
    /// Memory that environments do not use yet, as a Kubernetes quantity.
    #[schema(example = "48Gi")]
    pub available_memory: String,
}

/// The health of an unhealthy system, with the fields of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "status": "unhealthy",
    "version": "0.1.0",
    "kubernetes": {"connected": false, "version": "v1.36.1"},
    "capacity": {"total_nodes": 0, "available_cpu": "0", "available_memory": "0"},
    "error": "unavailable",
    "message": "no cluster is connected",
    "code": 503
}))]
pub struct Unhealthy {
    #[serde(flatten)]
    pub health: Health,
    #[serde(flatten)]
    pub error: crate::error::ErrorBody,
}

/// The answer of a healthy process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"status": "ok"}))]
pub struct Probe {
    /// Always `ok`.
    #[schema(example = "ok")]
    pub status: String,
}
