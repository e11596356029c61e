//! The AsyncAPI document of the environment events: the contract of the programs outside the product
//! that read them. Its lists come from the types, and a test compares it with `docs/asyncapi.json`.
//!
//! * I1. Within one version of the subjects ([`PREFIX`]), fields and values are only added. Readers
//!   ignore fields and values that they do not know. The test `recorded_events_are_still_decoded`
//!   decodes events of each released version.

use serde_json::{Value, json};
use strum::VariantArray as _;

use crate::environment::{
    EXECUTION_EVENTS_LABEL, EXECUTION_EVENTS_ON, EventExecutionStatus, EventKind, Status,
    StatusReason,
};
use crate::ids::{EnvironmentId, ExecId, RANDOM_LEN, UserId};
use crate::pool::MissReason;
use crate::subjects::{ALL_EVENTS, EVENTS_STREAM, PREFIX};

/// The version of the document. A field or a value that is added raises the second number.
pub const VERSION: &str = "1.0.0";

const DESCRIPTION: &str = "\
The events of environments, as internal services read them from the JetStream stream `ABX_EVENTS` with a \
credential that can do nothing else. Within one version of the subjects, fields and values are only added: \
ignore those that you do not know. Events are delivered at least once, in the order of their numbers in the \
stream; `Nats-Msg-Id` is the same in each copy of an event.";

/// The AsyncAPI 3 document.
#[must_use]
pub fn document() -> Value {
    json!({
        "asyncapi": "3.0.0",
        "id": "urn:agentbox:events:v1",
        "info": {
            "title": "AgentBox events",
            "version": VERSION,
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
            "tags": [{ "name": "environments" }],
        },
        "defaultContentType": "application/json",
        "servers": { "nats": server() },
        "channels": { "environmentEvents": channel() },
        "operations": {
            "receiveEnvironmentEvents": {
                "action": "receive",
                "title": "Receive environment events",
                "summary": "Reads the events from the stream, from any time that is still kept.",
                "channel": { "$ref": "#/channels/environmentEvents" },
                "messages": [{ "$ref": "#/channels/environmentEvents/messages/environmentEvent" }],
            },
        },
        "components": {
            "messages": { "environmentEvent": message() },
            "schemas": { "environmentEvent": schema() },
            "securitySchemes": {
                "eventReader": {
                    "type": "userPassword",
                    "description": "A NATS user that can read events and nothing else.",
                },
            },
        },
    })
}

fn server() -> Value {
    json!({
        "host": "{host}:{port}",
        "protocol": "nats",
        "description": "The NATS server of the installation. JetStream keeps the events for 7 days.",
        "variables": {
            "host": { "default": "127.0.0.1", "description": "The host of NATS." },
            "port": { "default": "4222", "description": "The port of NATS." },
        },
        "security": [{ "$ref": "#/components/securitySchemes/eventReader" }],
    })
}

fn channel() -> Value {
    let texts: Vec<&str> = EventKind::VARIANTS
        .iter()
        .map(|kind| kind.as_str())
        .collect();
    json!({
        "address": format!("{PREFIX}.evt.env.{{owner}}.{{environment}}.{{kind}}"),
        "title": "Environment events",
        "description": format!(
            "The stream `{EVENTS_STREAM}` has the subjects `{ALL_EVENTS}`. A consumer may filter by owner, \
             environment and kind. The kinds of executions occur only in environments with the label \
             `{EXECUTION_EVENTS_LABEL}: {EXECUTION_EVENTS_ON}`."
        ),
        "parameters": {
            "owner": { "description": "The id of the environment's owner.", "examples": [example(UserId::PREFIX)] },
            "environment": { "description": "The id of the environment.", "examples": [example(EnvironmentId::PREFIX)] },
            "kind": { "description": "The kind of the event.", "enum": texts },
        },
        "messages": {
            "environmentEvent": { "$ref": "#/components/messages/environmentEvent" },
        },
    })
}

fn message() -> Value {
    json!({
        "name": "environmentEvent",
        "title": "Environment event",
        "summary": "The state of an environment after a change.",
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "properties": {
                "Nats-Msg-Id": {
                    "type": "string",
                    "description": "The id of the event, equal in each copy of it.",
                },
                "traceparent": {
                    "type": "string",
                    "description": "The trace of the change (W3C Trace Context).",
                },
            },
        },
        "payload": { "$ref": "#/components/schemas/environmentEvent" },
        "examples": [{
            "name": "ended",
            "summary": "The main command of an environment has ended.",
            "payload": {
                "environment_id": example(EnvironmentId::PREFIX),
                "owner": example(UserId::PREFIX),
                "kind": "terminated",
                "status": "terminated",
                "status_reason": "EXITED",
                "status_message": "the main command ended",
                "exit_code": 0,
                "pool": { "name": "python", "hit": true },
                "at": "2026-01-22T10:30:00Z",
            },
        }, {
            "name": "executionEnded",
            "summary": "An execution of an environment with the label has ended.",
            "payload": {
                "environment_id": example(EnvironmentId::PREFIX),
                "owner": example(UserId::PREFIX),
                "kind": "execution_ended",
                "status": "running",
                "status_reason": null,
                "status_message": null,
                "exit_code": null,
                "execution": { "id": example(ExecId::PREFIX), "status": "exited", "exit_code": 3 },
                "at": "2026-01-22T10:20:00Z",
            },
        }],
    })
}

fn schema() -> Value {
    let kinds: Vec<&str> = EventKind::VARIANTS
        .iter()
        .map(|kind| kind.as_str())
        .collect();
    let statuses: Vec<&str> = Status::VARIANTS
        .iter()
        .map(|status| status.as_str())
        .collect();
    let reasons: Vec<Value> = StatusReason::VARIANTS
        .iter()
        .map(|reason| json!(reason.as_str()))
        .chain([Value::Null])
        .collect();
    json!({
        "type": "object",
        "required": ["environment_id", "owner", "kind", "status", "at"],
        "properties": {
            "environment_id": id(EnvironmentId::PREFIX, "The environment."),
            "owner": id(UserId::PREFIX, "The owner of the environment."),
            "kind": { "type": "string", "enum": kinds, "description": "What happened." },
            "status": { "type": "string", "enum": statuses, "description": "The status after the event." },
            "status_reason": {
                "type": ["string", "null"],
                "enum": reasons,
                "description": "Why the environment has this status.",
            },
            "status_message": {
                "type": ["string", "null"],
                "description": "Details of the reason, for people.",
            },
            "exit_code": {
                "type": ["integer", "null"],
                "description": "The exit code of the main command.",
            },
            "pool": pool(),
            "execution": execution(),
            "at": { "type": "string", "format": "date-time", "description": "When it happened (RFC 3339, UTC)." },
        },
    })
}

fn pool() -> Value {
    let reasons: Vec<&str> = MissReason::VARIANTS
        .iter()
        .map(|reason| reason.as_str())
        .collect();
    json!({
        "type": "object",
        "required": ["name", "hit"],
        "properties": {
            "name": { "type": "string", "description": "The name of the pool." },
            "hit": {
                "type": "boolean",
                "description": "Whether the environment runs in a box that was ready before.",
            },
            "reason": { "type": "string", "enum": reasons, "description": "Why not. Absent if it does." },
        },
        "description": "Whether the environment got a box of a warm pool. Absent if no pool has its image.",
    })
}

fn execution() -> Value {
    let statuses: Vec<&str> = EventExecutionStatus::VARIANTS
        .iter()
        .map(|status| status.as_str())
        .collect();
    json!({
        "type": "object",
        "required": ["id", "status"],
        "properties": {
            "id": id(ExecId::PREFIX, "The execution."),
            "status": { "type": "string", "enum": statuses, "description": "Its status after the event." },
            "exit_code": {
                "type": "integer",
                "description": "The exit code of its command. Absent while it runs, or if it did not exit.",
            },
        },
        "description": "The execution that started or ended. Absent in events of other kinds.",
    })
}

fn id(prefix: &str, description: &str) -> Value {
    json!({
        "type": "string",
        "pattern": format!("^{prefix}[a-z0-9]{{{RANDOM_LEN}}}$"),
        "description": description,
    })
}

fn example(prefix: &str) -> String {
    format!("{prefix}0123456789abcdef")
}

#[cfg(test)]
mod tests;
