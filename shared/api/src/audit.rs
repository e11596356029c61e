//! The audit trail: who did what.

use agentbox_contracts::audit::rpc::ChainedEntry;
use agentbox_contracts::audit::{AuditAction, AuditOutcome};
use agentbox_contracts::ids::{ApiKeyId, AuditId, UserId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// One recorded action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "sequence": 4711,
    "id": "audit-0123456789abcdef",
    "at": "2026-01-22T10:00:00Z",
    "user": "user-0123456789abcdef",
    "key": "key-0123456789abcdef",
    "address": "192.0.2.1",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "action": "exec",
    "target": "env-0123456789abcdef",
    "outcome": "accepted",
    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
}))]
pub struct AuditEntryBody {
    /// The number of the entry. It rises by one from entry to entry.
    #[schema(example = 4711)]
    pub sequence: u64,
    /// The entry's id. It never changes.
    pub id: AuditId,
    /// When the action was recorded (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub at: DateTime<Utc>,
    /// The user that acted. Absent if nobody was authenticated, and for actions of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// The API key that the request used, also by a ticket. Absent if it used a login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ApiKeyId>,
    /// The client's address. Absent for actions of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "192.0.2.1")]
    pub address: Option<String>,
    /// The `X-Trace-Id` of the answer. Absent for actions of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "4bf92f3577b34da6a3ce929d0e0e4736")]
    pub trace_id: Option<String>,
    /// The recorded action.
    pub action: AuditAction,
    /// The id of the environment, user, key, login, webhook or dead letter that the action was about, or
    /// the name of a registry, a pool or a cluster. Absent if it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "env-0123456789abcdef")]
    pub target: Option<String>,
    /// The outcome of the action.
    pub outcome: AuditOutcome,
    /// The command and its arguments, at most 4 KiB. Absent unless the operator records them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["python", "-c", "print(1)"]))]
    pub arguments: Option<Vec<String>>,
    /// True if the command was longer than 4 KiB, so that its end is missing. Else absent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = true)]
    pub arguments_truncated: bool,
    /// True if a service of AgentBox did not say who sent the request. Else absent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = true)]
    pub origin_missing: bool,
    /// The SHA-256 of the hash of the entry before and of this entry, in hexadecimal digits.
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub hash: String,
}

impl From<ChainedEntry> for AuditEntryBody {
    fn from(chained: ChainedEntry) -> Self {
        let entry = chained.entry;
        Self {
            sequence: chained.sequence,
            id: entry.id,
            at: entry.at,
            user: entry.origin.user,
            key: entry.origin.key,
            address: entry.origin.address.map(|address| address.to_string()),
            trace_id: entry.origin.trace_id,
            action: entry.action,
            target: entry.target,
            outcome: entry.outcome,
            arguments: entry.arguments,
            arguments_truncated: entry.arguments_truncated,
            origin_missing: entry.origin.is_missing,
            hash: chained.hash,
        }
    }
}

/// One page of recorded actions, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "entries": [{
        "sequence": 4711,
        "id": "audit-0123456789abcdef",
        "at": "2026-01-22T10:00:00Z",
        "user": "user-0123456789abcdef",
        "address": "192.0.2.1",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "action": "create-environment",
        "target": "env-0123456789abcdef",
        "outcome": "ok",
        "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct AuditList {
    /// The entries of this page.
    pub entries: Vec<AuditEntryBody>,
    /// The number of entries on all pages, at most 100,000: no page begins after these. `until` lists
    /// older ones.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of entries before this page.
    #[schema(example = 0)]
    pub offset: u64,
}

/// Which recorded actions to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Return only actions of this user. Default: all users for an administrator, else the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline, example = "user-0123456789abcdef")]
    pub user: Option<UserId>,
    /// Return only this kind of action. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub action: Option<AuditAction>,
    /// Return only actions on this environment, user, key or login: its id, 1 to 64 characters.
    /// Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(example = "env-0123456789abcdef", min_length = 1, max_length = 64)]
    pub target: Option<String>,
    /// Return only actions recorded at or after this time (RFC 3339). Default: from the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(example = "2026-01-22T10:00:00Z")]
    pub since: Option<DateTime<Utc>>,
    /// Return only actions recorded before this time (RFC 3339). Default: to the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(example = "2026-01-23T10:00:00Z")]
    pub until: Option<DateTime<Utc>>,
    /// The largest number of entries to return, 1 to 1000. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000, default = 100, example = 50)]
    pub limit: Option<u32>,
    /// The number of entries to skip, from the newest. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(default = 0, example = 0)]
    pub offset: Option<u64>,
}
