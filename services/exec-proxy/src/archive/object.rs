//! The encoding of an archive: one JSON object per line, oldest entry first. Pure.

use agentbox_contracts::logs::LogEntry;

/// The size that an entry counts in addition to its line, so that the number of empty lines
/// is bounded too.
pub const ENTRY_COST: usize = 32;

/// A line of the object is not a log entry.
#[derive(Debug, thiserror::Error)]
#[error("line {number} of the archive is not a log entry")]
pub struct MalformedLine {
    /// The line's number, from 1.
    pub number: usize,
    pub source: serde_json::Error,
}

/// The newest of `entries` that fit `limit_bytes` together. Entries are kept or dropped as a
/// whole.
#[must_use]
pub fn newest(mut entries: Vec<LogEntry>, limit_bytes: usize) -> Vec<LogEntry> {
    let mut remaining = limit_bytes;
    let kept = entries
        .iter()
        .rev()
        .take_while(|entry| {
            let cost = entry.line.len() + ENTRY_COST;
            let fits = cost <= remaining;
            remaining = remaining.saturating_sub(cost);
            fits
        })
        .count();
    entries.split_off(entries.len() - kept)
}

/// Encodes the entries.
///
/// # Errors
/// The serializer's; entries from a box never fail.
pub fn encode(entries: &[LogEntry]) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut bytes, entry)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// Decodes an archive.
///
/// # Errors
/// [`MalformedLine`] for the first line that is not an entry.
pub fn decode(bytes: &[u8]) -> Result<Vec<LogEntry>, MalformedLine> {
    bytes
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|source| MalformedLine {
                number: index + 1,
                source,
            })
        })
        .collect()
}

/// Whether an archive whose last sequence is `new` replaces one that ends at `stored`.
#[must_use]
pub const fn replaces(new: u64, stored: Option<u64>) -> bool {
    match stored {
        None => true,
        Some(stored) => new > stored,
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::logs::OutputStream;
    use chrono::DateTime;

    use super::*;

    fn entry(sequence: u64, line: &[u8]) -> LogEntry {
        LogEntry {
            sequence,
            timestamp: DateTime::from_timestamp_nanos(1_700_000_000_123_456_789),
            stream: OutputStream::Stderr,
            line: line.to_vec(),
            partial: sequence.is_multiple_of(2),
        }
    }

    #[test]
    fn archived_entries_round_trip_exactly() {
        let entries = vec![
            entry(7, b""),
            entry(8, &[0, 255, b'\n', b'"']),
            entry(9, b"last"),
        ];
        assert_eq!(decode(&encode(&entries).unwrap()).unwrap(), entries);
        assert_eq!(decode(b"").unwrap(), []);
        assert_eq!(decode(b"{}\n").unwrap_err().number, 1);
    }

    #[test]
    fn newest_keeps_entries_within_limit() {
        let entries: Vec<LogEntry> = (1..=10).map(|n| entry(n, &[b'x'; 68])).collect();
        for (limit, first) in [(1000, 1), (999, 2), (200, 9), (100, 10)] {
            assert_eq!(newest(entries.clone(), limit)[0].sequence, first, "{limit}");
        }
        assert!(newest(entries, 99).is_empty());
        assert!(newest(Vec::new(), 99).is_empty());
    }

    #[test]
    fn archive_is_replaced_only_by_later_sequence() {
        for (new, stored, replaced) in [
            (0, None, true),
            (0, Some(0), false),
            (5, Some(5), false),
            (6, Some(5), true),
            (0, Some(5), false),
        ] {
            assert_eq!(replaces(new, stored), replaced, "{new} over {stored:?}");
        }
    }
}
