//! The main command's output, as lines.

use agentbox_contracts::logs::{LogEntry, OutputStream};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Absent with `timestamps=false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    #[schema(schema_with = crate::schema::output_stream)]
    pub stream: OutputStream,
    /// Bytes that are not UTF-8 become U+FFFD.
    pub message: String,
}

impl LogLine {
    /// `message` is the entry's line as text.
    #[must_use]
    pub fn new(entry: &LogEntry, message: String, timestamps: bool) -> Self {
        Self {
            timestamp: timestamps
                .then(|| entry.timestamp.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            stream: entry.stream,
            message,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct LogsReply {
    pub logs: Vec<LogLine>,
    /// So many older lines were asked for and are no longer kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// Lines from the end; all when absent.
    #[serde(default)]
    pub tail: Option<u64>,
    #[serde(default = "yes")]
    #[param(default = true)]
    pub timestamps: bool,
    /// Stream as server-sent events.
    #[serde(default)]
    #[param(default = false)]
    pub follow: bool,
    /// Only lines at or after this instant (RFC 3339).
    #[serde(default)]
    pub since: Option<DateTime<Utc>>,
    /// A single-use ticket instead of an Authorization header.
    #[serde(default)]
    pub ticket: Option<String>,
}
