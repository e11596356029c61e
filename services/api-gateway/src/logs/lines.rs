//! Converts log entries to the lines of the API. Pure.

use agentbox_api::logs::LogLine;
use agentbox_contracts::logs::{LogEntry, OutputStream};

use crate::text::Decoder;

/// Converts the entries of one reader. A line longer than an entry becomes several; a character
/// that was split between two entries is in the second.
pub(crate) struct Lines {
    timestamps: bool,
    stdout: Decoder,
    stderr: Decoder,
}

impl Lines {
    pub(crate) fn new(timestamps: bool) -> Self {
        Self {
            timestamps,
            stdout: Decoder::default(),
            stderr: Decoder::default(),
        }
    }

    pub(crate) fn line(&mut self, entry: &LogEntry) -> LogLine {
        let decoder = match entry.stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let mut message = decoder.push(&entry.line);
        if !entry.partial {
            message.push_str(&decoder.finish());
        }
        LogLine::new(entry, message, self.timestamps)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn entry(stream: OutputStream, line: &[u8], partial: bool) -> LogEntry {
        LogEntry {
            sequence: 1,
            timestamp: DateTime::from_timestamp(1_769_076_015, 0).unwrap_or_default(),
            stream,
            line: line.to_vec(),
            partial,
        }
    }

    #[test]
    fn line_has_the_documented_fields() {
        let mut lines = Lines::new(true);
        let line = lines.line(&entry(OutputStream::Stdout, b"Line 1", false));
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"timestamp":"2026-01-22T10:00:15Z","stream":"stdout","message":"Line 1"}"#
        );
        let mut lines = Lines::new(false);
        let line = lines.line(&entry(OutputStream::Stderr, b"\xff", false));
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            "{\"stream\":\"stderr\",\"message\":\"\u{fffd}\"}"
        );
    }

    #[test]
    fn split_character_is_kept_and_streams_do_not_mix() {
        let mut lines = Lines::new(false);
        let texts: Vec<String> = [
            (OutputStream::Stdout, &b"a\xe2\x82"[..], true),
            (OutputStream::Stderr, b"x", false),
            (OutputStream::Stdout, b"\xacb", false),
            (OutputStream::Stdout, b"\xe2", false),
            (OutputStream::Stdout, b"c", false),
        ]
        .into_iter()
        .map(|(stream, line, partial)| lines.line(&entry(stream, line, partial)).message)
        .collect();
        assert_eq!(texts, ["a", "x", "€b", "\u{fffd}", "c"]);
    }
}
