//! Warm pools: boxes that are started before an environment needs one, and the scheduler's RPCs about
//! them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::environment::{Isolation, ResourceRequest};
use crate::ids::{RANDOM_LEN, UserId};

/// The most pools of a deployment.
pub const MAX_POOLS: u64 = 64;
/// The most boxes of one pool.
pub const MAX_READY: u32 = 1_000;

/// The owner of the boxes that no environment has claimed: the operator. No user has this id.
#[must_use]
pub fn operator() -> UserId {
    UserId::from_hash([0; RANDOM_LEN])
}

/// The boxes of a pool, and how many it keeps ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    pub image: String,
    pub resources: ResourceRequest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// `None`: each box is placed like an environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    pub min_ready: u32,
    pub max_ready: u32,
}

impl PoolSpec {
    /// Whether a box of `other` is also one of this pool.
    #[must_use]
    pub fn has_same_boxes(&self, other: &Self) -> bool {
        self.image == other.image
            && self.resources == other.resources
            && self.isolation == other.isolation
            && self.node_selector == other.node_selector
            && self.cluster == other.cluster
    }
}

/// Who defines a pool.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "api"))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum PoolSource {
    /// A request of an administrator.
    Api,
    /// The deployment's configuration. The API cannot change it.
    Configuration,
}

impl PoolSource {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// Why an environment did not get a box of the pool of its image. The list is closed: a new reason
/// is a change of the API. In the order in which they are checked.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "empty"))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum MissReason {
    /// It has other resources.
    Resources,
    /// It has another runtime class.
    RuntimeClass,
    /// It has another security context, or a user that the claim of a box of the pool cannot give.
    SecurityContext,
    /// It has another node selector.
    NodeSelector,
    /// It tolerates taints.
    Tolerations,
    /// Its main command is the image's, which the cluster does not support.
    Entrypoint,
    /// It has another network policy, which the cluster cannot change without a new box.
    NetworkPolicy,
    /// The pool has no ready box.
    Empty,
    /// The box could not be configured. It was replaced.
    ClaimFailed,
}

impl MissReason {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// Whether an environment got a box of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({"name": "python", "hit": true})))]
pub struct PoolUse {
    /// The name of the pool.
    #[cfg_attr(feature = "openapi", schema(example = "python"))]
    pub name: String,
    /// Whether the environment runs in a box that was ready before.
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub hit: bool,
    /// Why not. Absent if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<MissReason>,
}

impl PoolUse {
    #[must_use]
    pub fn hit(pool: &str) -> Self {
        Self {
            name: pool.to_owned(),
            hit: true,
            reason: None,
        }
    }

    #[must_use]
    pub fn miss(pool: &str, reason: MissReason) -> Self {
        Self {
            name: pool.to_owned(),
            hit: false,
            reason: Some(reason),
        }
    }
}

/// The state of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// The boxes that the pool keeps ready now, by its demand.
    pub target: u32,
    /// Boxes that can be claimed.
    pub ready: u64,
    pub starting: u64,
    /// Boxes that are being removed.
    pub draining: u64,
    pub hits: u64,
    pub misses_by_reason: BTreeMap<MissReason, u64>,
    /// Starts that failed one after the other.
    pub failures: u32,
    /// The next start after a failed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl PoolStatus {
    /// The environments of the pool's image that were created.
    #[must_use]
    pub fn claims(&self) -> u64 {
        self.misses_by_reason
            .values()
            .fold(self.hits, |sum, misses| sum.saturating_add(*misses))
    }
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    pub spec: PoolSpec,
    pub source: PoolSource,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub status: PoolStatus,
}

pub mod rpc {
    //! The gateway decides who may use them.

    use super::{Deserialize, Pool, PoolSpec, Serialize};
    use crate::rpc::{Empty, rpc};

    /// Defines a pool, or replaces its definition.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct SetPoolRequest {
        pub name: String,
        pub spec: PoolSpec,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct SetPoolReply {
        pub pool: Pool,
        pub is_new: bool,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct GetPoolRequest {
        pub name: String,
    }

    /// One page, in the order of the names.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListPoolsRequest {
        pub limit: u32,
        pub offset: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct ListPoolsReply {
        pub pools: Vec<Pool>,
        pub total: u64,
    }

    /// Deletes a pool. Its boxes are removed afterwards.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct DeletePoolRequest {
        pub name: String,
    }

    rpc!(SetPool: "scheduler", "set-pool", SetPoolRequest => SetPoolReply);
    rpc!(GetPool: "scheduler", "get-pool", GetPoolRequest => Pool);
    rpc!(ListPools: "scheduler", "list-pools", ListPoolsRequest => ListPoolsReply);
    rpc!(DeletePool: "scheduler", "delete-pool", DeletePoolRequest => Empty);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_is_an_id_that_no_user_gets() {
        assert_eq!(operator().as_str(), "user-0000000000000000");
        assert_eq!(operator(), operator());
    }

    #[test]
    fn claims_are_hits_and_misses() {
        let status = PoolStatus {
            hits: 3,
            misses_by_reason: BTreeMap::from([(MissReason::Empty, 2), (MissReason::Resources, 1)]),
            ..PoolStatus::default()
        };
        assert_eq!(status.claims(), 6);
    }
}
