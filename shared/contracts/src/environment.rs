//! Environments: the request, the stored record, events, and the scheduler's RPCs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use strum::VariantArray;

use crate::ids::{EnvironmentId, UserId};

/// The longest lifetime, in seconds: ten years. A later date does not fit `DateTime<Utc>`.
pub const MAX_TIMEOUT_S: u64 = 10 * 366 * 24 * 3600;
/// The longest image reference, in characters.
pub const MAX_IMAGE_LENGTH: usize = 512;
/// The most labels, or node selector requirements, of one environment.
pub const MAX_LABELS: usize = 64;

/// The status of an environment. `terminated` and `failed` are final.
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
    strum::VariantArray,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "running"))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum Status {
    Pending,
    Running,
    Terminating,
    Terminated,
    Failed,
}

impl Status {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }

    #[must_use]
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Terminated | Self::Failed)
    }
}

/// Why an environment has its status. The list is closed: a new reason is a change of the API.
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
    strum::VariantArray,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "OOM_KILLED"))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", const_into_str)]
pub enum StatusReason {
    ImagePull,
    ImageInvalid,
    Unschedulable,
    Quota,
    RuntimeClass,
    StartTimeout,
    OomKilled,
    Evicted,
    NodeLost,
    Exited,
    Expired,
    Deleted,
}

impl StatusReason {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// CPU, memory and storage as Kubernetes quantities, in the client's own notation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRequest {
    pub cpu: String,
    pub memory: String,
    pub storage: String,
}

/// The isolation of an environment from its host and from the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "runtime_class": "gvisor",
    "network_policy": {"allow_internet": true, "allowed_ingress_ports": [8080]},
    "security_context": {"run_as_user": 1000, "run_as_non_root": true}
})))]
#[serde(deny_unknown_fields)]
pub struct Isolation {
    /// The name of a Kubernetes RuntimeClass, or of a CRI runtime handler. Default: the
    /// cluster's standard runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "gvisor",
            max_length = 63,
            pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
        )
    )]
    pub runtime_class: Option<String>,
    /// The connections that the environment may open and accept. Default: the deployment's
    /// policy, which allows the public internet only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// The user and the privileges of the environment's processes. Default: those of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<SecurityContext>,
}

/// The connections that an environment may open and accept. All others are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "allow_internet": true,
    "allowed_egress_cidrs": ["10.20.0.0/16"],
    "allowed_ingress_ports": [8080],
    "allow_cluster_internal": false
})))]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    /// Allow connections to the public internet and to DNS. Private address ranges and the
    /// cloud's metadata address stay closed. Default: false.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(example = true, default = false))]
    pub allow_internet: bool,
    /// Address ranges (CIDR notation) that the environment may connect to, at most 64.
    /// Default: none.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(
        value_type = Vec<EgressCidr>, example = json!(["10.20.0.0/16"]), max_items = 64
    ))]
    pub allowed_egress_cidrs: Vec<String>,
    /// TCP ports of the environment, 1 to 65535, that others may connect to, at most 64.
    /// Default: none.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(
        value_type = Vec<IngressPort>, example = json!([8080]), max_items = 64
    ))]
    pub allowed_ingress_ports: Vec<u16>,
    /// Allow connections to and from the other environments of the same cluster. Default: false.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(example = false, default = false))]
    pub allow_cluster_internal: bool,
}

/// An address range in CIDR notation.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(example = "10.20.0.0/16", pattern = "^[0-9a-fA-F.:]+/[0-9]{1,3}$")]
struct EgressCidr(#[allow(dead_code, reason = "describes the items of a list")] String);

/// A TCP port.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(example = 8080, minimum = 1, maximum = 65535)]
struct IngressPort(#[allow(dead_code, reason = "describes the items of a list")] u16);

/// The user and the privileges of an environment's processes. The names are Kubernetes'.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "run_as_user": 1000,
    "run_as_group": 1000,
    "run_as_non_root": true,
    "read_only_root_filesystem": false,
    "allow_privilege_escalation": false
})))]
#[serde(deny_unknown_fields)]
pub struct SecurityContext {
    /// Numeric user id of every process, 0 to 2147483647. Default: the image's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = 1000, maximum = 2147483647))]
    pub run_as_user: Option<u32>,
    /// Numeric primary group id of every process, 0 to 2147483647. Default: the image's group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = 1000, maximum = 2147483647))]
    pub run_as_group: Option<u32>,
    /// Refuse to start as user 0. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub run_as_non_root: Option<bool>,
    /// Mount the image's file system read-only. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub read_only_root_filesystem: Option<bool>,
    /// Let a process gain privileges that its parent lacks, for example by a setuid program.
    /// Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub allow_privilege_escalation: Option<bool>,
}

/// A Kubernetes toleration, with Kubernetes' own field names. Clusters without taints ignore it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "key": "dedicated", "operator": "Equal", "value": "agents", "effect": "NoSchedule"
})))]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// The key of the taint to tolerate. Default: every key, with `operator` `Exists`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "dedicated"))]
    pub key: Option<String>,
    /// `Equal` compares `value` with the taint's, `Exists` accepts any value. Default: `Equal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Equal", pattern = "^(Equal|Exists)$")
    )]
    pub operator: Option<String>,
    /// The value of the taint to tolerate. Absent with `Exists`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "agents"))]
    pub value: Option<String>,
    /// The effect of the taint to tolerate: `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    /// Default: every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "NoSchedule",
            pattern = "^(NoSchedule|PreferNoSchedule|NoExecute)$"
        )
    )]
    pub effect: Option<String>,
    /// Seconds that a `NoExecute` taint is tolerated. Default: without end.
    #[cfg_attr(feature = "openapi", schema(example = 300))]
    #[serde(
        default,
        rename = "tolerationSeconds",
        alias = "toleration_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub toleration_seconds: Option<i64>,
}

/// The body of a create request. The scheduler validates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentRequest {
    pub name: String,
    pub image: String,
    pub resources: ResourceRequest,
    /// Seconds from `created_at`.
    pub timeout_s: u64,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub command: Option<Vec<String>>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    #[serde(default)]
    pub isolation: Option<Isolation>,
}

/// One environment, as stored by the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub id: EnvironmentId,
    pub owner: UserId,
    /// The owner's username at creation.
    pub owner_username: String,
    pub cluster: String,
    #[serde(flatten)]
    pub request: EnvironmentRequest,
    pub status: Status,
    #[serde(default)]
    pub status_reason: Option<StatusReason>,
    #[serde(default)]
    pub status_message: Option<String>,
    pub created_at: DateTime<Utc>,
    #[serde(default)]
    pub started_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub ended_at: Option<DateTime<Utc>>,
    pub expires_at: DateTime<Utc>,
    /// The exit code of the main command.
    #[serde(default)]
    pub exit_code: Option<i32>,
    pub endpoint: String,
    pub namespace: String,
    /// The address of its boxd, while it runs.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// Increases with each change of the desired state; fences writes.
    pub generation: i64,
}

/// Where an environment runs: the copy that gateway replicas keep in memory until it ends
/// (KV bucket [`crate::subjects::ROUTES_BUCKET`], key: the id).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub owner: UserId,
    pub status: Status,
    pub cluster: String,
    #[serde(default)]
    pub address: Option<SocketAddr>,
}

/// The kind of an event of an environment.
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
    strum::VariantArray,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "running"))]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum EventKind {
    Created,
    Updated,
    Running,
    Terminating,
    Terminated,
    Failed,
}

impl EventKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// The body of a message on `abx.v1.evt.env.<id>.<kind>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentEvent {
    pub environment_id: EnvironmentId,
    pub owner: UserId,
    pub kind: EventKind,
    pub status: Status,
    #[serde(default)]
    pub status_reason: Option<StatusReason>,
    #[serde(default)]
    pub status_message: Option<String>,
    #[serde(default)]
    pub exit_code: Option<i32>,
    pub at: DateTime<Utc>,
}

/// The environments that a caller may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    All,
    Owner(UserId),
    /// The environments of `owner` that are listed in `only`.
    Listed {
        owner: UserId,
        only: Vec<EnvironmentId>,
    },
}

pub mod rpc {
    //! The scheduler's RPCs.

    use super::{
        BTreeMap, Deserialize, Environment, EnvironmentId, EnvironmentRequest, Serialize, Status,
        UserId, Visibility,
    };
    use crate::rpc::{Empty, rpc};

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct CreateRequest {
        pub owner: UserId,
        pub owner_username: String,
        pub request: EnvironmentRequest,
        #[serde(default)]
        pub idempotency_key: Option<String>,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct GetRequest {
        pub id: EnvironmentId,
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
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct HealthReply {
        pub database: bool,
        pub clusters: Vec<ClusterHealth>,
    }

    rpc!(Create: "scheduler", "create", CreateRequest => Environment);
    rpc!(Get: "scheduler", "get", GetRequest => Environment);
    rpc!(List: "scheduler", "list", ListRequest => ListReply);
    rpc!(Resolve: "scheduler", "resolve", ResolveRequest => ResolveReply);
    rpc!(Patch: "scheduler", "patch", PatchRequest => Environment);
    rpc!(Delete: "scheduler", "delete", DeleteRequest => Empty);
    rpc!(DeleteOwned: "scheduler", "delete-owned", DeleteOwnedRequest => Empty);
    rpc!(Health: "scheduler", "health", Empty => HealthReply);
}
