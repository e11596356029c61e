//! The clusters of the deployment, for administrators.

use std::collections::BTreeMap;

use agentbox_contracts::cluster::{Cluster, ClusterCapacity, EnvironmentCounts, SchedulingState};
use agentbox_contracts::units::{Bytes, MilliCpu};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// One cluster of the deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "name": "eu-1",
    "driver": "kubernetes",
    "labels": {"region": "eu"},
    "connected": true,
    "version": "v1.36.1",
    "state": "draining",
    "drain_deadline": "2026-01-22T11:00:00Z",
    "environments": {"pending": 0, "running": 3, "terminating": 1},
    "capacity": {
        "nodes": 3, "total_cpu": "24", "total_memory": "96Gi", "available_cpu": "20",
        "available_memory": "80Gi"
    }
}))]
pub struct ClusterBody {
    /// The cluster's name in the configuration.
    #[schema(example = "eu-1")]
    pub name: String,
    /// The kind of the cluster: `kubernetes` or `containerd`.
    #[schema(example = "kubernetes")]
    pub driver: String,
    /// The labels that a `node_selector` may name, from the configuration.
    #[schema(example = json!({"region": "eu"}))]
    pub labels: BTreeMap<String, String>,
    /// Whether the cluster answers.
    #[schema(example = true)]
    pub connected: bool,
    /// The version of Kubernetes, or of containerd on a single machine. Absent if the cluster does
    /// not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "v1.36.1")]
    pub version: Option<String>,
    /// Whether the cluster takes new environments: only an `active` one does.
    pub state: SchedulingState,
    /// When the drain ends the environments that are left (RFC 3339, UTC). Absent if the cluster is
    /// not drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-22T11:00:00Z")]
    pub drain_deadline: Option<DateTime<Utc>>,
    /// The environments that the cluster has now.
    pub environments: EnvironmentCountsBody,
    /// The resources of the cluster. Absent if it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<ClusterCapacityBody>,
}

/// The environments of a cluster that have not ended, by status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"pending": 0, "running": 3, "terminating": 1}))]
pub struct EnvironmentCountsBody {
    /// The number of environments that are not running yet.
    #[schema(example = 0)]
    pub pending: u64,
    /// The number of running environments.
    #[schema(example = 3)]
    pub running: u64,
    /// The number of environments that are ending.
    #[schema(example = 1)]
    pub terminating: u64,
}

impl From<EnvironmentCounts> for EnvironmentCountsBody {
    fn from(counts: EnvironmentCounts) -> Self {
        Self {
            pending: counts.pending,
            running: counts.running,
            terminating: counts.terminating,
        }
    }
}

/// The resources of the nodes of a cluster together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "nodes": 3, "total_cpu": "24", "total_memory": "96Gi", "available_cpu": "20",
    "available_memory": "80Gi"
}))]
pub struct ClusterCapacityBody {
    /// The number of machines that run environments.
    #[schema(example = 3)]
    pub nodes: u32,
    /// The CPU cores of all machines, as a Kubernetes quantity.
    #[schema(example = "24")]
    pub total_cpu: String,
    /// The memory of all machines, as a Kubernetes quantity.
    #[schema(example = "96Gi")]
    pub total_memory: String,
    /// CPU cores that environments do not use yet, as a Kubernetes quantity.
    #[schema(example = "20")]
    pub available_cpu: String,
    /// Memory that environments do not use yet, as a Kubernetes quantity.
    #[schema(example = "80Gi")]
    pub available_memory: String,
}

impl From<ClusterCapacity> for ClusterCapacityBody {
    fn from(capacity: ClusterCapacity) -> Self {
        Self {
            nodes: capacity.nodes,
            total_cpu: MilliCpu(capacity.total_cpu_milli).to_string(),
            total_memory: Bytes(capacity.total_memory_bytes).to_string(),
            available_cpu: MilliCpu(capacity.available_cpu_milli).to_string(),
            available_memory: Bytes(capacity.available_memory_bytes).to_string(),
        }
    }
}

impl From<Cluster> for ClusterBody {
    fn from(cluster: Cluster) -> Self {
        Self {
            name: cluster.name,
            driver: cluster.driver,
            labels: cluster.labels,
            connected: cluster.capacity.is_some(),
            version: cluster.capacity.is_some().then_some(cluster.version),
            state: cluster.state,
            drain_deadline: cluster.drain_deadline,
            environments: cluster.environments.into(),
            capacity: cluster.capacity.map(ClusterCapacityBody::from),
        }
    }
}

/// One page of clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "clusters": [{
        "name": "local",
        "driver": "containerd",
        "labels": {},
        "connected": false,
        "state": "active",
        "environments": {"pending": 0, "running": 0, "terminating": 0}
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct ClusterList {
    /// The clusters of this page, by their names.
    pub clusters: Vec<ClusterBody>,
    /// The number of clusters on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of clusters before this page.
    #[schema(example = 0)]
    pub offset: u64,
}

/// The parameters of a drain.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DrainQuery {
    /// After this time the environments that are left are ended, in seconds: 0 to 604800. Default:
    /// 3600.
    #[serde(default)]
    #[param(minimum = 0, maximum = 604800, default = 3600, example = 600)]
    pub timeout: Option<u64>,
}
