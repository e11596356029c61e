//! Environments: the request, the stored record, events, and the scheduler's RPCs.

mod enforcement;
mod execution_event;
mod isolation;
pub mod rpc;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use strum::VariantArray;

use crate::ids::{EnvironmentId, UserId};
use crate::pool::PoolUse;

pub use enforcement::{Enforcement, LimitEnforcement};
pub use execution_event::{
    EXECUTION_EVENTS_LABEL, EXECUTION_EVENTS_ON, EventExecution, EventExecutionStatus,
};
pub use isolation::{Isolation, NetworkPolicy, SecurityContext};

/// The longest lifetime, in seconds: ten years. It keeps `expires_at` within the range of
/// `DateTime<Utc>`.
pub const MAX_TIMEOUT_S: u64 = 10 * 366 * 24 * 3600;
/// How often an exec-proxy reports the environments in use, in seconds: the precision of
/// [`Environment::last_active_at`].
pub const ACTIVITY_INTERVAL_S: u64 = 10;
/// The shortest idle timeout, in seconds. Activity is not known more precisely.
pub const MIN_IDLE_TIMEOUT_S: u64 = ACTIVITY_INTERVAL_S;
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
    /// Seconds without activity after which it ends. `None`: it may be idle until its timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_s: Option<u64>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variables that no reply contains.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_env: BTreeMap<String, String>,
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// Whether the image's ENTRYPOINT and CMD are the main command. Never with `command`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_entrypoint: bool,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    #[serde(default)]
    pub isolation: Option<Isolation>,
}

impl EnvironmentRequest {
    /// Whether the environment has a main command: its own, or the image's.
    #[must_use]
    pub const fn has_main_command(&self) -> bool {
        self.command.is_some() || self.use_entrypoint
    }
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
    /// The last activity that is known, to the nearest [`ACTIVITY_INTERVAL_S`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_active_at: Option<DateTime<Utc>>,
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
    /// `None`: no pool has its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolUse>,
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

/// The kind of an event of an environment. The kinds of executions occur only in environments whose
/// label `execution-events` is `true`.
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
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum EventKind {
    Created,
    Updated,
    Running,
    Terminating,
    Terminated,
    Failed,
    ExecutionStarted,
    ExecutionEnded,
}

impl EventKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }
}

/// The body of a message on `abx.v1.evt.env.<owner>.<id>.<kind>`.
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
    /// Whether it got a box of a pool. `None`: no pool has its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolUse>,
    /// Only of the kinds of executions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<EventExecution>,
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
