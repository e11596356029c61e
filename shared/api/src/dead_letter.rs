//! Dead letters: messages that could not be processed. For administrators.

use std::collections::BTreeMap;

use agentbox_contracts::dead_letter::{DeadLetter, DeadLetterKind};
use agentbox_contracts::ids::EnvironmentId;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A message that could not be processed, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "number": 17,
    "kind": "command",
    "subject": "abx.v1.cmd.env.local.reconcile.env-0123456789abcdef",
    "environment_id": "env-0123456789abcdef",
    "reason": "the database failed",
    "at": "2026-01-22T10:00:00Z",
    "bytes": 4
}))]
pub struct DeadLetterBody {
    /// The number of the dead letter. It never changes.
    #[schema(example = 17)]
    pub number: u64,
    /// The kind of the message: only a `command` can be replayed.
    pub kind: DeadLetterKind,
    /// The NATS subject of the message.
    #[schema(example = "abx.v1.cmd.env.local.reconcile.env-0123456789abcdef")]
    pub subject: String,
    /// The environment that the command is for. Absent for other messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_id: Option<EnvironmentId>,
    /// Why the message could not be processed.
    #[schema(example = "the database failed")]
    pub reason: String,
    /// When the message was given up (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub at: DateTime<Utc>,
    /// The number of bytes of the message that are kept, at most 65536.
    #[schema(example = 4)]
    pub bytes: u64,
}

impl From<DeadLetter> for DeadLetterBody {
    fn from(letter: DeadLetter) -> Self {
        Self {
            number: letter.number,
            kind: letter.kind,
            subject: letter.subject,
            environment_id: letter.environment,
            reason: letter.reason,
            at: letter.at,
            bytes: letter.bytes,
        }
    }
}

/// A message that could not be processed, with its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "number": 17,
    "kind": "command",
    "subject": "abx.v1.cmd.env.local.reconcile.env-0123456789abcdef",
    "environment_id": "env-0123456789abcdef",
    "reason": "the database failed",
    "at": "2026-01-22T10:00:00Z",
    "bytes": 4,
    "headers": {"Abx-Reason": ["the database failed"]},
    "body": "null"
}))]
pub struct DeadLetterContentBody {
    #[serde(flatten)]
    pub letter: DeadLetterBody,
    /// The headers of the message, each with its values, and the reason.
    #[schema(example = json!({"Abx-Reason": ["the database failed"]}))]
    pub headers: BTreeMap<String, Vec<String>>,
    /// The message. Absent if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "null")]
    pub body: Option<String>,
    /// The message in base64 (RFC 4648). Absent if it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/w==")]
    pub body_base64: Option<String>,
}

/// One page of dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "dead_letters": [{
        "number": 17,
        "kind": "audit",
        "subject": "abx.v1.audit.api-gateway.exec",
        "reason": "it is too large",
        "at": "2026-01-22T10:00:00Z",
        "bytes": 65536
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct DeadLetterList {
    /// The dead letters of this page, newest first.
    pub dead_letters: Vec<DeadLetterBody>,
    /// The number of dead letters on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of dead letters before this page.
    #[schema(example = 0)]
    pub offset: u64,
}
