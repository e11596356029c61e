//! Warm pools.

use std::collections::BTreeMap;

use agentbox_contracts::environment::{Isolation, ResourceRequest};
use agentbox_contracts::pool::{Pool, PoolSource, PoolSpec};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::environment::Resources;
use crate::kubernetes::Labels;

/// The definition of a pool. An environment gets one of its boxes if it asks for the same image,
/// resources, runtime class, security context and node selector, and on Kubernetes for the same network
/// policy.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "image": "python:3.11-slim",
    "resources": {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"},
    "min_ready": 2,
    "max_ready": 8
}))]
#[serde(deny_unknown_fields)]
pub struct SetPool {
    /// The container image of the boxes, as in a create request.
    #[schema(
        example = "python:3.11-slim",
        min_length = 1,
        max_length = 512,
        pattern = r"^([A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?(\.[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*(:[0-9]{1,5})?/)?[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}))?$"
    )]
    pub image: String,
    /// The resources of each box.
    pub resources: Resources,
    /// The isolation of the boxes. Default: the deployment's settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Labels that the node of a box must have. Default: any node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Labels)]
    pub node_selector: BTreeMap<String, String>,
    /// The name of the cluster that runs the boxes. Default: each box is placed like an environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "local")]
    pub cluster: Option<String>,
    /// The fewest boxes that the pool keeps ready, at most `max_ready`.
    #[schema(example = 2, maximum = 1000)]
    pub min_ready: u32,
    /// The most boxes that the pool keeps ready, at most 1000.
    #[schema(example = 8, maximum = 1000)]
    pub max_ready: u32,
}

impl From<SetPool> for PoolSpec {
    fn from(body: SetPool) -> Self {
        Self {
            image: body.image,
            resources: ResourceRequest {
                cpu: body.resources.cpu,
                memory: body.resources.memory,
                storage: body.resources.storage,
            },
            isolation: body.isolation,
            node_selector: body.node_selector,
            cluster: body.cluster,
            min_ready: body.min_ready,
            max_ready: body.max_ready,
        }
    }
}

/// The state of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "target": 3, "ready": 2, "starting": 1, "draining": 0,
    "claims": 13, "hits": 10, "misses_by_reason": {"empty": 3}, "failures": 0
}))]
pub struct PoolStatusBody {
    /// The boxes that the pool keeps ready now: as many as the busiest of the last five minutes needed,
    /// from `min_ready` to `max_ready`.
    #[schema(example = 3)]
    pub target: u32,
    /// The boxes that an environment can get now.
    #[schema(example = 2)]
    pub ready: u64,
    /// The boxes that start.
    #[schema(example = 1)]
    pub starting: u64,
    /// The boxes that are being removed.
    #[schema(example = 0)]
    pub draining: u64,
    /// The environments of the pool's image that were created since the pool exists: `hits` and misses.
    #[schema(example = 13)]
    pub claims: u64,
    /// Those that got a box of the pool.
    #[schema(example = 10)]
    pub hits: u64,
    /// Those that did not, by the reason. `empty`: no box was ready. `claim_failed`: the box could not be
    /// used, and was replaced. The others name what differs from the pool.
    #[schema(example = json!({"empty": 3}))]
    pub misses_by_reason: BTreeMap<String, u64>,
    /// The starts of boxes that failed one after the other.
    #[schema(example = 0)]
    pub failures: u32,
    /// The time of the next start after a failed one (RFC 3339, UTC). Absent if none failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-22T10:05:00Z")]
    pub retry_at: Option<DateTime<Utc>>,
    /// Why the last start failed. Absent if none failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "image pull failed: not found")]
    pub last_error: Option<String>,
}

/// A pool of boxes that wait for a create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "name": "python",
    "source": "api",
    "image": "python:3.11-slim",
    "resources": {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"},
    "node_selector": {},
    "min_ready": 2,
    "max_ready": 8,
    "created_at": "2026-01-22T10:00:00Z",
    "updated_at": "2026-01-22T10:00:00Z",
    "status": {
        "target": 3, "ready": 2, "starting": 1, "draining": 0,
        "claims": 13, "hits": 10, "misses_by_reason": {"empty": 3}, "failures": 0
    }
}))]
pub struct PoolBody {
    /// The name of the pool.
    #[schema(example = "python")]
    pub name: String,
    /// Who defines it. A pool of the deployment's `configuration` cannot be changed by requests.
    pub source: PoolSource,
    /// The container image of the boxes.
    #[schema(example = "python:3.11-slim")]
    pub image: String,
    /// The resources of each box, in their shortest notation.
    pub resources: Resources,
    /// The isolation of the boxes. Absent if none was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Labels that the node of a box must have.
    #[serde(default)]
    #[schema(example = json!({"disk": "ssd"}))]
    pub node_selector: BTreeMap<String, String>,
    /// The name of the cluster that runs the boxes. Absent if none was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "local")]
    pub cluster: Option<String>,
    /// The fewest boxes that the pool keeps ready.
    #[schema(example = 2)]
    pub min_ready: u32,
    /// The most boxes that the pool keeps ready.
    #[schema(example = 8)]
    pub max_ready: u32,
    /// When the pool was defined (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
    /// When its definition last changed (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub updated_at: DateTime<Utc>,
    /// Its state now.
    pub status: PoolStatusBody,
}

impl From<Pool> for PoolBody {
    fn from(pool: Pool) -> Self {
        let (spec, status) = (pool.spec, pool.status);
        Self {
            name: pool.name,
            source: pool.source,
            image: spec.image,
            resources: Resources {
                cpu: spec.resources.cpu,
                memory: spec.resources.memory,
                storage: spec.resources.storage,
            },
            isolation: spec.isolation,
            node_selector: spec.node_selector,
            cluster: spec.cluster,
            min_ready: spec.min_ready,
            max_ready: spec.max_ready,
            created_at: pool.created_at,
            updated_at: pool.updated_at,
            status: PoolStatusBody {
                claims: status.claims(),
                target: status.target,
                ready: status.ready,
                starting: status.starting,
                draining: status.draining,
                hits: status.hits,
                misses_by_reason: status
                    .misses_by_reason
                    .into_iter()
                    .map(|(reason, misses)| (reason.as_str().to_owned(), misses))
                    .collect(),
                failures: status.failures,
                retry_at: status.retry_at,
                last_error: status.last_error,
            },
        }
    }
}

/// One page of pools.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "pools": [{
        "name": "python",
        "source": "api",
        "image": "python:3.11-slim",
        "resources": {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"},
        "node_selector": {},
        "min_ready": 2,
        "max_ready": 8,
        "created_at": "2026-01-22T10:00:00Z",
        "updated_at": "2026-01-22T10:00:00Z",
        "status": {
            "target": 3, "ready": 2, "starting": 1, "draining": 0,
            "claims": 13, "hits": 10, "misses_by_reason": {"empty": 3}, "failures": 0
        }
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct PoolList {
    /// The pools of this page, by their names.
    pub pools: Vec<PoolBody>,
    /// The number of pools on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of pools before this page.
    #[schema(example = 0)]
    pub offset: u64,
}
