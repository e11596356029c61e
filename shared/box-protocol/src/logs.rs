//! Conversions between boxd's log entries and those of the contracts.

use agentbox_contracts::logs::{LogEntry, OutputStream};
use chrono::{DateTime, Utc};

use crate::proto;

impl From<LogEntry> for proto::LogEntry {
    fn from(entry: LogEntry) -> Self {
        let stream = match entry.stream {
            OutputStream::Stdout => proto::Stream::Stdout,
            OutputStream::Stderr => proto::Stream::Stderr,
        };
        Self {
            sequence: entry.sequence,
            // An instant after the year 2262 does not fit.
            unix_nanos: entry.timestamp.timestamp_nanos_opt().unwrap_or(i64::MAX),
            stream: stream.into(),
            line: entry.line,
            partial: entry.partial,
        }
    }
}

impl From<proto::LogEntry> for LogEntry {
    /// Converts; an unknown stream, from a newer boxd, becomes stdout.
    fn from(entry: proto::LogEntry) -> Self {
        let stream = match entry.stream() {
            proto::Stream::Stderr => OutputStream::Stderr,
            proto::Stream::Stdout | proto::Stream::Unspecified => OutputStream::Stdout,
        };
        Self {
            sequence: entry.sequence,
            timestamp: DateTime::<Utc>::from_timestamp_nanos(entry.unix_nanos),
            stream,
            line: entry.line,
            partial: entry.partial,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_entry_round_trips() {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let entry = LogEntry {
                sequence: 7,
                timestamp: DateTime::from_timestamp_nanos(1_700_000_000_123_456_789),
                stream,
                line: vec![0, 255, b'x'],
                partial: true,
            };
            assert_eq!(LogEntry::from(proto::LogEntry::from(entry.clone())), entry);
        }
    }
}
