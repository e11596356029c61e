//! What happened to environments.

use agentbox_contracts::environment::{
    EnvironmentEvent, EventExecution, EventKind, Status, StatusReason,
};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::pool::PoolUse;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// An event of an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": 4711,
    "environment_id": "env-0123456789abcdef",
    "kind": "terminated",
    "status": "terminated",
    "status_reason": "EXITED",
    "exit_code": 0,
    "at": "2026-01-22T10:30:00Z"
}))]
pub struct EventBody {
    /// The event's number. It rises with time and is the `id:` of the server-sent event.
    #[schema(example = 4711)]
    pub id: u64,
    /// The environment that the event is about.
    pub environment_id: EnvironmentId,
    /// The kind of the event.
    pub kind: EventKind,
    /// The status of the environment after the event.
    pub status: Status,
    /// Why the environment has this status. Absent if there is no reason to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<StatusReason>,
    /// Details of the reason, for people. Absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "the main command ended")]
    pub status_message: Option<String>,
    /// The exit code of the main command. Absent while it runs, or if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 0)]
    pub exit_code: Option<i32>,
    /// Whether the environment got a box of a warm pool. Absent if no pool has its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolUse>,
    /// The execution that started or ended. Absent unless the kind says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<EventExecution>,
    /// When it happened (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:30:00Z")]
    pub at: DateTime<Utc>,
}

impl EventBody {
    #[must_use]
    pub fn new(id: u64, event: EnvironmentEvent) -> Self {
        Self {
            id,
            environment_id: event.environment_id,
            kind: event.kind,
            status: event.status,
            status_reason: event.status_reason,
            status_message: event.status_message,
            exit_code: event.exit_code,
            pool: event.pool,
            execution: event.execution,
            at: event.at,
        }
    }
}

/// One page of events, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "events": [{
        "id": 4711,
        "environment_id": "env-0123456789abcdef",
        "kind": "running",
        "status": "running",
        "at": "2026-01-22T10:00:01Z"
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct EventList {
    /// The events of this page.
    pub events: Vec<EventBody>,
    /// The number of events on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of events before this page.
    #[schema(example = 0)]
    pub offset: u64,
}

/// The page of events, or the stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Answer with a stream of server-sent events instead of a page. Default: false.
    #[serde(default)]
    #[param(default = false, example = false)]
    pub follow: bool,
    /// The largest number of events to return, 1 to 1000. Ignored with `follow`. Default: 100.
    #[serde(default)]
    #[param(minimum = 1, maximum = 1000, default = 100, example = 50)]
    pub limit: Option<u32>,
    /// The number of events to skip, from the newest. Ignored with `follow`. Default: 0.
    #[serde(default)]
    #[param(default = 0, example = 0)]
    pub offset: Option<u64>,
}
