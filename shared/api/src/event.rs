//! What happened to environments.

use agentbox_contracts::environment::{EnvironmentEvent, EventKind, Status, StatusReason};
use agentbox_contracts::ids::EnvironmentId;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventBody {
    /// Rises; the SSE `id:` too.
    pub id: u64,
    #[schema(value_type = String, example = "env-0123456789abcdef")]
    pub environment_id: EnvironmentId,
    #[schema(schema_with = crate::schema::event_kind)]
    pub kind: EventKind,
    #[schema(schema_with = crate::schema::status)]
    pub status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::status_reason)]
    pub status_reason: Option<StatusReason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
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
            at: event.at,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    pub events: Vec<EventBody>,
    pub total: u64,
    pub limit: u32,
    pub offset: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Stream as server-sent events: those kept, then those that come.
    #[serde(default)]
    #[param(default = false)]
    pub follow: bool,
    #[serde(default)]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
    #[serde(default)]
    pub offset: Option<u64>,
}
