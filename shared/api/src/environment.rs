//! Environments.

use std::collections::BTreeMap;

use agentbox_contracts::environment::{
    Environment, EnvironmentRequest, Isolation, NetworkPolicy, ResourceRequest, Status,
    StatusReason, Toleration,
};
use agentbox_contracts::exec::UsageReply;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::nullable;
use agentbox_contracts::pool::PoolUse;
use agentbox_contracts::units::{Bytes, MilliCpu};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::kubernetes::{Argument, Labels, Name, Quantity, Variables};

/// Seconds an environment lives when its creator does not say.
pub const DEFAULT_TIMEOUT_S: u64 = 3600;

/// The resources of an environment, each as a Kubernetes quantity. They are limits, and the
/// cluster reserves them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"cpu": "500m", "memory": "512Mi", "storage": "1Gi"}))]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// CPU cores, such as `500m` (half a core) or `2`.
    #[schema(value_type = Quantity)]
    pub cpu: String,
    /// Memory in bytes, such as `512Mi` or `2Gi`.
    #[schema(value_type = Quantity)]
    pub memory: String,
    /// Writable disk space in bytes, such as `1Gi`. At most 100Gi, unless the deployment has
    /// another limit.
    #[schema(value_type = Quantity)]
    pub storage: String,
}

fn default_timeout() -> u64 {
    DEFAULT_TIMEOUT_S
}

/// An environment to create.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "name": "my-python-env",
    "image": "python:3.11-slim",
    "resources": {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"},
    "timeout": 3600,
    "env": {"MY_VAR": "my-value"},
    "labels": {"project": "my-project"},
    "isolation": {"network_policy": {"allow_internet": true}}
}))]
#[serde(deny_unknown_fields)]
pub struct CreateEnvironment {
    /// A name for people. It need not be unique.
    #[schema(value_type = Name)]
    pub name: String,
    /// The container image to run: `[host[:port]/]path[:tag][@digest]`, the path in lower case. At
    /// most 512 characters, and 255 before the tag. The operator allows its registry: by default
    /// `docker.io`, `ghcr.io` and `quay.io`.
    #[schema(
        example = "python:3.11-slim",
        min_length = 1,
        max_length = 512,
        pattern = r"^([A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?(\.[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*(:[0-9]{1,5})?/)?[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}))?$"
    )]
    pub image: String,
    /// The resources that the environment gets.
    pub resources: Resources,
    /// Seconds from creation until the environment is ended, 1 to 316224000 (ten years).
    /// Default: 3600.
    #[serde(default = "default_timeout")]
    #[schema(minimum = 1, maximum = 316224000, default = 3600, example = 3600)]
    pub timeout: u64,
    /// Seconds without activity after which the environment is ended (`EXPIRED`), 10 to 316224000.
    /// Activity is a command that runs, a terminal, a followed log, a file call, and a connection to a
    /// port through this API. The end comes at most 40 seconds later. Default: it may be idle until
    /// its timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10, maximum = 316224000, example = 600)]
    pub idle_timeout: Option<u64>,
    /// Environment variables of every process in the environment. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Variables)]
    pub env: BTreeMap<String, String>,
    /// Further variables, which no response contains. A name must not be in `env` too. The limit of
    /// bytes is for `env` and `secret_env` together. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Variables)]
    pub secret_env: BTreeMap<String, String>,
    /// The main command: the program and its arguments, together at most 131072 bytes. Its
    /// output is the environment's log, and the environment ends with it. It replaces the image's
    /// ENTRYPOINT and CMD. Default: no main command, the environment runs until its timeout, unless
    /// `use_entrypoint` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        value_type = Option<Vec<Argument>>,
        example = json!(["python", "-m", "http.server", "8080"]),
        min_items = 1
    )]
    pub command: Option<Vec<String>>,
    /// Whether the image's ENTRYPOINT, with its CMD as arguments, is the main command; an image
    /// without ENTRYPOINT runs its CMD. Must be false with `command`. Clusters on Kubernetes do not
    /// support it. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(default = false, example = false)]
    pub use_entrypoint: bool,
    /// Labels to find the environment by. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Labels)]
    pub labels: BTreeMap<String, String>,
    /// Labels that a node must have to run the environment. The operator decides which labels may
    /// be used. Default: any node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Labels)]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the environment tolerates, at most 64. The operator decides which
    /// taints may be tolerated. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(
        example = json!([{"key": "dedicated", "operator": "Exists"}]),
        max_items = 64
    )]
    pub tolerations: Vec<Toleration>,
    /// The isolation of the environment. Default: the deployment's settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

impl From<CreateEnvironment> for EnvironmentRequest {
    fn from(body: CreateEnvironment) -> Self {
        Self {
            name: body.name,
            image: body.image,
            resources: ResourceRequest {
                cpu: body.resources.cpu,
                memory: body.resources.memory,
                storage: body.resources.storage,
            },
            timeout_s: body.timeout,
            idle_timeout_s: body.idle_timeout,
            env: body.env,
            secret_env: body.secret_env,
            command: body.command,
            use_entrypoint: body.use_entrypoint,
            labels: body.labels,
            node_selector: body.node_selector,
            tolerations: body.tolerations,
            isolation: body.isolation,
        }
    }
}

/// The fields of an environment to change. An absent field stays as it is, and so does one that is
/// null, except `idle_timeout`. At least one is required.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"timeout": 7200, "labels": {"project": "my-project"}}))]
#[serde(deny_unknown_fields)]
pub struct PatchEnvironment {
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Name>)]
    pub name: Option<String>,
    /// The new labels. They replace all labels that the environment has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Labels>)]
    pub labels: Option<BTreeMap<String, String>>,
    /// The new lifetime in seconds from `created_at`, 1 to 316224000. It may be longer or
    /// shorter than before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 316224000, example = 7200)]
    pub timeout: Option<u64>,
    /// The new idle timeout in seconds, 10 to 316224000; null removes it. It counts from the last
    /// activity: one that is shorter than the environment has been idle ends it.
    #[serde(
        default,
        deserialize_with = "nullable::deserialize",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u64>, minimum = 10, maximum = 316224000, example = 600)]
    pub idle_timeout: Option<Option<u64>>,
    /// The new network policy. It replaces the whole policy that the environment has. A pending
    /// environment starts with it. For a running one `network_policy_applied` reports whether it is in
    /// force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
}

impl PatchEnvironment {
    /// Whether no field is to be changed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.labels.is_none()
            && self.timeout.is_none()
            && self.idle_timeout.is_none()
            && self.network_policy.is_none()
    }
}

/// The current usage of a running environment, as Kubernetes quantities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"cpu_usage": "125m", "memory_usage": "256Mi"}))]
pub struct Metrics {
    /// CPU cores in use.
    #[schema(example = "125m")]
    pub cpu_usage: String,
    /// Memory in use, in bytes.
    #[schema(example = "256Mi")]
    pub memory_usage: String,
}

impl From<UsageReply> for Metrics {
    fn from(usage: UsageReply) -> Self {
        Self {
            cpu_usage: MilliCpu(usage.cpu_milli).to_string(),
            memory_usage: Bytes(usage.memory_bytes / 1024 * 1024).to_string(),
        }
    }
}

/// An environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "env-0123456789abcdef",
    "name": "my-python-env",
    "status": "running",
    "image": "python:3.11-slim",
    "created_at": "2026-01-22T10:00:00Z",
    "started_at": "2026-01-22T10:00:01Z",
    "expires_at": "2026-01-22T11:00:00Z",
    "resources": {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"},
    "metrics": {"cpu_usage": "125m", "memory_usage": "256Mi"},
    "endpoint": "env-0123456789abcdef.agentbox.svc.cluster.local",
    "namespace": "agentbox-env-0123456789abcdef",
    "owner": "user-0123456789abcdef",
    "timeout": 3600,
    "env": {"MY_VAR": "my-value"},
    "labels": {"project": "my-project"},
    "node_selector": {},
    "tolerations": []
}))]
pub struct EnvironmentBody {
    /// The environment's id. It never changes.
    pub id: EnvironmentId,
    /// The name that was given.
    #[schema(example = "my-python-env")]
    pub name: String,
    /// The status now.
    pub status: Status,
    /// Why the environment has this status. Absent if there is no reason to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<StatusReason>,
    /// Details of the reason, for people. Absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "the main command was killed for lack of memory")]
    pub status_message: Option<String>,
    /// The container image.
    #[schema(example = "python:3.11-slim")]
    pub image: String,
    /// When the environment was created (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
    /// When it began to run (RFC 3339, UTC). Absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-22T10:00:01Z")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it is ended, if it has not ended before (RFC 3339, UTC).
    #[schema(example = "2026-01-22T11:00:00Z")]
    pub expires_at: DateTime<Utc>,
    /// The last activity that is known, to the nearest 10 seconds (RFC 3339, UTC). Absent before the
    /// first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-22T10:05:00Z")]
    pub last_active_at: Option<DateTime<Utc>>,
    /// The exit code of the main command. Absent while it runs, or if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 0)]
    pub exit_code: Option<i32>,
    /// The resources that the environment has.
    pub resources: Resources,
    /// The current usage. Absent in lists, and unless the environment runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The host name or address of the environment in its cluster's network.
    #[schema(example = "env-0123456789abcdef.agentbox.svc.cluster.local")]
    pub endpoint: String,
    /// The namespace of the environment in its cluster.
    #[schema(example = "agentbox-env-0123456789abcdef")]
    pub namespace: String,
    /// The id of the user who created it.
    #[schema(value_type = UserId)]
    pub owner: String,
    /// The lifetime in seconds from `created_at`.
    #[schema(example = 3600)]
    pub timeout: u64,
    /// Seconds without activity after which it is ended. Absent if there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 600)]
    pub idle_timeout: Option<u64>,
    /// The environment variables that were given in `env`. Absent in lists, and for callers other
    /// than the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!({"MY_VAR": "my-value"}))]
    pub env: Option<BTreeMap<String, String>>,
    /// The names of the variables in `env`, for callers other than the owner: only the owner sees
    /// the values. Absent for the owner and in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["MY_VAR"]))]
    pub env_names: Option<Vec<String>>,
    /// The labels.
    #[schema(example = json!({"project": "my-project"}))]
    pub labels: BTreeMap<String, String>,
    /// The main command. Absent if there is none, and if it is the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["python", "-m", "http.server", "8080"]))]
    pub command: Option<Vec<String>>,
    /// Whether the main command is the image's ENTRYPOINT and CMD. Absent: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = false)]
    pub use_entrypoint: bool,
    /// The isolation that was requested. Absent if none was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Whether the new network policy of a running environment was seen in force. Present only in the
    /// answer to the request that changed it. On containerd it is always true. On Kubernetes it is
    /// false when no check has seen the policy within 5 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = true)]
    pub network_policy_applied: Option<bool>,
    /// Whether the environment got a box of a warm pool, and why not. Absent if no pool has its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolUse>,
    /// Labels that the node must have.
    #[serde(default)]
    #[schema(example = json!({"disk": "ssd"}))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the environment tolerates.
    #[serde(default)]
    #[schema(example = json!([{"key": "dedicated", "operator": "Exists"}]))]
    pub tolerations: Vec<Toleration>,
}

impl From<Environment> for EnvironmentBody {
    fn from(environment: Environment) -> Self {
        let request = environment.request;
        Self {
            id: environment.id,
            name: request.name,
            status: environment.status,
            status_reason: environment.status_reason,
            status_message: environment.status_message,
            image: request.image,
            created_at: environment.created_at,
            started_at: environment.started_at,
            expires_at: environment.expires_at,
            last_active_at: environment.last_active_at,
            exit_code: environment.exit_code,
            resources: Resources {
                cpu: request.resources.cpu,
                memory: request.resources.memory,
                storage: request.resources.storage,
            },
            metrics: None,
            endpoint: environment.endpoint,
            namespace: environment.namespace,
            owner: environment.owner.to_string(),
            timeout: request.timeout_s,
            idle_timeout: request.idle_timeout_s,
            env: Some(request.env),
            env_names: None,
            labels: request.labels,
            command: request.command,
            use_entrypoint: request.use_entrypoint,
            isolation: request.isolation,
            network_policy_applied: None,
            pool: environment.pool,
            node_selector: request.node_selector,
            tolerations: request.tolerations,
        }
    }
}

/// One page of environments, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "environments": [{
        "id": "env-0123456789abcdef",
        "name": "my-python-env",
        "status": "running",
        "image": "python:3.11-slim",
        "created_at": "2026-01-22T10:00:00Z",
        "started_at": "2026-01-22T10:00:01Z",
        "expires_at": "2026-01-22T11:00:00Z",
        "resources": {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"},
        "endpoint": "env-0123456789abcdef.agentbox.svc.cluster.local",
        "namespace": "agentbox-env-0123456789abcdef",
        "owner": "user-0123456789abcdef",
        "timeout": 3600,
        "labels": {"project": "my-project"},
        "node_selector": {},
        "tolerations": []
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct EnvironmentList {
    /// The environments of this page, without `env` and `metrics`.
    pub environments: Vec<EnvironmentBody>,
    /// The number of environments on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of environments before this page.
    #[schema(example = 0)]
    pub offset: u64,
}

/// Which environments to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Return only environments with this status. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub status: Option<Status>,
    /// Return only environments that match this Kubernetes label selector, whose requirements
    /// are joined by commas. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(example = "project=my-project,stage!=test")]
    pub label: Option<String>,
    /// The largest number of environments to return, 1 to 1000. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000, default = 100, example = 50)]
    pub limit: Option<u32>,
    /// The number of environments to skip, from the newest. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(default = 0, example = 0)]
    pub offset: Option<u64>,
}

/// What the answer to a create waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "running")]
#[serde(rename_all = "lowercase")]
pub enum CreateWait {
    Running,
}

/// How to create an environment.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CreateQuery {
    /// `running`: answer once the environment runs or has ended, after at most 60 seconds. Default:
    /// answer at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub wait: Option<CreateWait>,
}

/// How to delete an environment.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Kill the environment's processes at once instead of giving them time to stop. Default:
    /// false.
    #[serde(default)]
    #[param(default = false, example = false)]
    pub force: bool,
}
