//! The body of a request to a webhook.

use agentbox_contracts::environment::{
    EnvironmentEvent, EventExecution, EventKind, Status, StatusReason,
};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::pool::PoolUse;
use chrono::{DateTime, Utc};
use serde::Serialize;

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    timestamp: DateTime<Utc>,
    data: Data<'a>,
}

/// The event, with the fields of `GET /events`.
#[derive(Serialize)]
struct Data<'a> {
    id: u64,
    environment_id: &'a EnvironmentId,
    kind: EventKind,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_reason: Option<StatusReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a PoolUse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    execution: Option<&'a EventExecution>,
    at: DateTime<Utc>,
}

/// The body of the event with the number `sequence`.
///
/// # Errors
/// None: each value of an event can be encoded.
pub fn encode(sequence: u64, event: &EnvironmentEvent) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Body {
        r#type: format!("environment.{}", event.kind.as_str()),
        timestamp: event.at,
        data: Data {
            id: sequence,
            environment_id: &event.environment_id,
            kind: event.kind,
            status: event.status,
            status_reason: event.status_reason,
            status_message: event.status_message.as_deref(),
            exit_code: event.exit_code,
            pool: event.pool.as_ref(),
            execution: event.execution.as_ref(),
            at: event.at,
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn body_has_the_type_and_the_fields_of_the_event() {
        let event: EnvironmentEvent = serde_json::from_value(json!({
            "environment_id": "env-0123456789abcdef", "owner": "user-0123456789abcdef",
            "kind": "terminated", "status": "terminated", "status_reason": "EXITED",
            "exit_code": 0, "pool": {"name": "python", "hit": true}, "at": "2026-01-22T10:30:00Z",
        }))
        .unwrap();
        let text = encode(4711, &event).unwrap();
        let body: Value = serde_json::from_str(&text).unwrap();
        let expected = json!({
            "type": "environment.terminated", "timestamp": "2026-01-22T10:30:00Z",
            "data": {
                "id": 4711, "environment_id": "env-0123456789abcdef", "kind": "terminated",
                "status": "terminated", "status_reason": "EXITED", "exit_code": 0,
                "pool": {"name": "python", "hit": true}, "at": "2026-01-22T10:30:00Z",
            },
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn body_of_an_event_about_an_execution_has_the_execution() {
        let event: EnvironmentEvent = serde_json::from_value(json!({
            "environment_id": "env-0123456789abcdef", "owner": "user-0123456789abcdef",
            "kind": "execution_ended", "status": "running",
            "execution": {"id": "exec-0123456789abcdef", "status": "exited", "exit_code": 3},
            "at": "2026-01-22T10:30:00Z",
        }))
        .unwrap();
        let body: Value = serde_json::from_str(&encode(4711, &event).unwrap()).unwrap();
        assert_eq!(body["type"], "environment.execution_ended");
        let execution = json!({"id": "exec-0123456789abcdef", "status": "exited", "exit_code": 3});
        assert_eq!(body["data"]["execution"], execution);
    }
}
