//! The main command's output, as lines.

use agentbox_contracts::logs::{LogEntry, OutputStream};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// One line of the main command's output, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "timestamp": "2026-01-22T10:00:02.125Z", "stream": "stdout", "message": "listening on 8080"
}))]
pub struct LogLine {
    /// When the line was written (RFC 3339, UTC). Absent with `timestamps=false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-22T10:00:02.125Z")]
    pub timestamp: Option<String>,
    /// The stream that the line was written to.
    pub stream: OutputStream,
    /// The line without its line feed. Bytes that are not UTF-8 become U+FFFD.
    #[schema(example = "listening on 8080")]
    pub message: String,
    /// The message is a piece of a line, which continues in the next message of the same stream or
    /// was never finished. A line is split when it is longer than 16 KiB, or unfinished for half a
    /// second (a prompt, a progress bar); never within a character. Absent: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = false)]
    pub partial: bool,
}

impl LogLine {
    #[must_use]
    pub fn new(entry: &LogEntry, timestamps: bool) -> Self {
        Self {
            timestamp: timestamps
                .then(|| entry.timestamp.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            stream: entry.stream,
            message: String::from_utf8_lossy(&entry.line).into_owned(),
            partial: entry.partial,
        }
    }
}

/// The kept output of the main command, oldest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "logs": [{
        "timestamp": "2026-01-22T10:00:02.125Z",
        "stream": "stdout",
        "message": "listening on 8080"
    }]
}))]
pub struct LogsReply {
    /// The lines.
    pub logs: Vec<LogLine>,
    /// The number of lines, or pieces of lines, that were asked for and are no longer kept. With
    /// `since`, whose lost lines have no known time: at most this number. Absent if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 12)]
    pub lost: Option<u64>,
}

fn yes() -> bool {
    true
}

/// Which lines, and how.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// The number of newest lines to return; all pieces of a line are one. Default: every line.
    #[serde(default)]
    #[param(example = 100)]
    pub tail: Option<u64>,
    /// Add a timestamp to each line. Default: true.
    #[serde(default = "yes")]
    #[param(default = true, example = true)]
    pub timestamps: bool,
    /// Answer with a stream of server-sent events instead of the kept lines. Default: false.
    #[serde(default)]
    #[param(default = false, example = false)]
    pub follow: bool,
    /// Return only lines written at or after this time (RFC 3339). Default: every line.
    #[serde(default)]
    #[param(example = "2026-01-22T10:00:00Z")]
    pub since: Option<DateTime<Utc>>,
    /// A single-use ticket for `logs`, instead of an Authorization header.
    #[serde(default)]
    #[param(example = "ticket_0123456789abcdef0123456789abcdef")]
    pub ticket: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(stream: OutputStream, line: &[u8], partial: bool, timestamps: bool) -> String {
        let entry = LogEntry {
            sequence: 1,
            timestamp: DateTime::from_timestamp(1_769_076_015, 0).unwrap_or_default(),
            stream,
            line: line.to_vec(),
            partial,
        };
        serde_json::to_string(&LogLine::new(&entry, timestamps)).unwrap()
    }

    #[test]
    fn line_has_the_documented_fields() {
        assert_eq!(
            json(OutputStream::Stdout, b"Line 1", false, true),
            r#"{"timestamp":"2026-01-22T10:00:15Z","stream":"stdout","message":"Line 1"}"#
        );
        assert_eq!(
            json(OutputStream::Stderr, b"\xff", false, false),
            "{\"stream\":\"stderr\",\"message\":\"\u{fffd}\"}"
        );
        assert_eq!(
            json(OutputStream::Stdout, "50 €".as_bytes(), true, false),
            r#"{"stream":"stdout","message":"50 €","partial":true}"#
        );
    }
}
