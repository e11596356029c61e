//! The main command's output, as lines.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The stream of a process that a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "stdout"))]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// One line, without its line feed, or a piece of one: of a line longer than 16 KiB, or of one that
/// was unfinished when the piece was stored. A piece holds whole characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Starts at 1 for a box's first entry and rises by one with each.
    pub sequence: u64,
    pub timestamp: DateTime<Utc>,
    pub stream: OutputStream,
    #[serde(with = "base64_bytes")]
    pub line: Vec<u8>,
    /// The line continues in the next entry of the same stream, or was never finished.
    #[serde(default)]
    pub partial: bool,
}

/// Tells which entries begin a line. It needs every entry, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineStarts {
    /// Whether the last entry of stdout, and of stderr, was a piece whose line continues.
    continues: [bool; 2],
}

impl LineStarts {
    /// Whether the next entry, of this stream, begins a line.
    pub fn begins_line(&mut self, stream: OutputStream, partial: bool) -> bool {
        let continues = &mut self.continues[stream as usize];
        !std::mem::replace(continues, partial)
    }
}

/// Serde functions for bytes as base64 text, for JSON.
pub mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::Deserialize;

    /// # Errors
    /// As the serializer's.
    pub fn serialize<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    /// # Errors
    /// When the text is not base64.
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::OutputStream::{Stderr, Stdout};
    use super::*;

    #[test]
    fn piece_after_a_piece_of_its_stream_begins_no_line() {
        let mut starts = LineStarts::default();
        let begins = [
            (Stdout, true),
            (Stderr, false),
            (Stdout, true),
            (Stdout, false),
            (Stdout, false),
        ]
        .map(|(stream, partial)| starts.begins_line(stream, partial));
        assert_eq!(begins, [true, true, false, false, true]);
    }
}
