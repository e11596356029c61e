//! The scheduler's RPCs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Environment, EnvironmentRequest, LimitEnforcement, NetworkPolicy, Status, Visibility};
use crate::error::Error;
use crate::ids::{EnvironmentId, UserId};
use crate::limits::UserLimits;
use crate::nullable;
use crate::rpc::{Empty, rpc};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    pub owner: UserId,
    pub owner_username: String,
    pub request: EnvironmentRequest,
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// The limits of the owner.
    #[serde(default, skip_serializing_if = "UserLimits::is_default")]
    pub limits: UserLimits,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetRequest {
    pub id: EnvironmentId,
}

/// The most environments that one request may read.
pub const MAX_READ: usize = 64;

/// Reads several environments at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetManyRequest {
    /// At most [`MAX_READ`].
    pub ids: Vec<EnvironmentId>,
}

/// The requested environments. One that is in none of the fields does not exist.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GetManyReply {
    /// As many as fit in a message, at least one if there are any.
    pub environments: Vec<Environment>,
    /// Why those that exist could not be read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<EnvironmentId, Error>,
    /// Those that do not fit in this message. The caller asks for them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remaining: Vec<EnvironmentId>,
}

/// One page of environments, newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListRequest {
    pub visibility: Visibility,
    #[serde(default)]
    pub status: Option<Status>,
    /// Kubernetes label selector syntax, validated by the scheduler.
    #[serde(default)]
    pub label_selector: Option<String>,
    pub limit: u32,
    pub offset: u64,
    /// The total that an earlier part of the same page returned. Absent: count.
    #[serde(default)]
    pub known_total: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListReply {
    /// As many as fit in a message, at least one if there are any.
    pub environments: Vec<Environment>,
    pub total: u64,
    /// The page has more environments than fit in this message. The caller asks for the
    /// rest, from the first one that is missing.
    #[serde(default)]
    pub has_more: bool,
}

/// The most environments that one request may resolve.
pub const MAX_RESOLVED: usize = 1000;

/// Finds the owners of several environments at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResolveRequest {
    /// At most [`MAX_RESOLVED`].
    pub ids: Vec<EnvironmentId>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResolveReply {
    /// Those of the requested environments that exist.
    pub owners: BTreeMap<EnvironmentId, UserId>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PatchRequest {
    pub id: EnvironmentId,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub timeout_s: Option<u64>,
    /// `Some(None)` removes the idle timeout.
    #[serde(
        default,
        deserialize_with = "nullable::deserialize",
        skip_serializing_if = "Option::is_none"
    )]
    pub idle_timeout_s: Option<Option<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PatchReply {
    #[serde(flatten)]
    pub environment: Environment,
    /// After a change of the network policy of a running environment: whether a check has seen
    /// that it is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy_applied: Option<bool>,
}

/// The most environments in one report.
pub const MAX_REPORTED: usize = 1000;

/// Reports the environments that have an open session, or had one since the last report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecordActivityRequest {
    /// At most [`MAX_REPORTED`].
    pub environments: Vec<EnvironmentId>,
}

/// The reply means that the deletion is stored. The box is removed afterwards.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteRequest {
    pub id: EnvironmentId,
    /// Skip the grace period.
    pub force: bool,
}

/// Deletes every environment of a user.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteOwnedRequest {
    pub owner: UserId,
}

/// The state of one cluster, for `/health` and for placement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterHealth {
    pub name: String,
    pub driver: String,
    pub connected: bool,
    pub version: String,
    pub nodes: u32,
    pub available_cpu_milli: u64,
    pub available_memory_bytes: u64,
    /// Absent while the cluster does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<LimitEnforcement>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HealthReply {
    pub database: bool,
    pub clusters: Vec<ClusterHealth>,
}

rpc!(Create: "scheduler", "create", CreateRequest => Environment);
rpc!(Get: "scheduler", "get", GetRequest => Environment);
rpc!(GetMany: "scheduler", "get-many", GetManyRequest => GetManyReply);
rpc!(List: "scheduler", "list", ListRequest => ListReply);
rpc!(Resolve: "scheduler", "resolve", ResolveRequest => ResolveReply);
rpc!(Patch: "scheduler", "patch", PatchRequest => PatchReply);
rpc!(Delete: "scheduler", "delete", DeleteRequest => Empty);
rpc!(DeleteOwned: "scheduler", "delete-owned", DeleteOwnedRequest => Empty);
rpc!(RecordActivity: "scheduler", "record-activity", RecordActivityRequest => Empty);
rpc!(Health: "scheduler", "health", Empty => HealthReply);
