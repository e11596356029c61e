//! The main command's output, as lines.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// One line, without its line feed; or a part of one longer than 16 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// 1 for a box's first entry, then one more each.
    pub sequence: u64,
    pub timestamp: DateTime<Utc>,
    pub stream: OutputStream,
    #[serde(with = "base64_bytes")]
    pub line: Vec<u8>,
    /// The line goes on in the next entry of this stream.
    #[serde(default)]
    pub partial: bool,
}

/// Bytes in JSON, as base64 text.
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
