//! Environments.

use std::collections::BTreeMap;

use agentbox_contracts::environment::{
    Environment, EnvironmentRequest, Isolation, ResourceRequest, Status, StatusReason, Toleration,
};
use agentbox_contracts::exec::UsageReply;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::{Bytes, MilliCpu};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Seconds an environment lives when its creator does not say.
pub const DEFAULT_TIMEOUT_S: u64 = 3600;

/// Limits, as Kubernetes quantities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    #[schema(schema_with = crate::schema::cpu)]
    pub cpu: String,
    #[schema(schema_with = crate::schema::memory)]
    pub memory: String,
    #[schema(schema_with = crate::schema::storage)]
    pub storage: String,
}

fn default_timeout() -> u64 {
    DEFAULT_TIMEOUT_S
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEnvironment {
    /// An RFC 1123 label.
    #[schema(schema_with = crate::schema::name)]
    pub name: String,
    /// A container image reference.
    #[schema(schema_with = crate::schema::image)]
    pub image: String,
    pub resources: Resources,
    /// Lifetime in seconds.
    #[serde(default = "default_timeout")]
    #[schema(schema_with = crate::schema::default_lifetime)]
    pub timeout: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = crate::schema::variables)]
    pub env: BTreeMap<String, String>,
    /// The main command: its output is the logs, its end the environment's. Without one
    /// the box idles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::optional_command)]
    pub command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = crate::schema::labels)]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = crate::schema::labels)]
    pub node_selector: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(schema_with = crate::schema::tolerations)]
    pub tolerations: Vec<Toleration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::isolation)]
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
            env: body.env,
            command: body.command,
            labels: body.labels,
            node_selector: body.node_selector,
            tolerations: body.tolerations,
            isolation: body.isolation,
        }
    }
}

/// What to change; an absent field stays. At least one is given.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchEnvironment {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::patched_name)]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::patched_labels)]
    pub labels: Option<BTreeMap<String, String>>,
    /// Seconds from `created_at`; may extend or shorten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::patched_lifetime)]
    pub timeout: Option<u64>,
}

/// What a running box uses now, as Kubernetes quantities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    #[schema(example = "125m")]
    pub cpu_usage: String,
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

/// An environment as everyone who may see it sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentBody {
    #[schema(value_type = String, example = "env-0123456789abcdef")]
    pub id: EnvironmentId,
    pub name: String,
    #[schema(schema_with = crate::schema::status)]
    pub status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::status_reason)]
    pub status_reason: Option<StatusReason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_message: Option<String>,
    pub image: String,
    pub created_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    pub expires_at: DateTime<Utc>,
    /// Of the main command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub resources: Resources,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    pub endpoint: String,
    pub namespace: String,
    pub owner: String,
    pub timeout: u64,
    /// Not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::isolation)]
    pub isolation: Option<Isolation>,
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    #[serde(default)]
    #[schema(schema_with = crate::schema::tolerations)]
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
            env: Some(request.env),
            labels: request.labels,
            command: request.command,
            isolation: request.isolation,
            node_selector: request.node_selector,
            tolerations: request.tolerations,
        }
    }
}

/// One page, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentList {
    pub environments: Vec<EnvironmentBody>,
    /// Of all pages.
    pub total: u64,
    pub limit: u32,
    pub offset: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(schema_with = crate::schema::status)]
    pub status: Option<Status>,
    /// A Kubernetes label selector, its requirements joined by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Skip the grace period.
    #[serde(default)]
    #[param(default = false)]
    pub force: bool,
}
