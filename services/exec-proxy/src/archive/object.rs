//! An archive as bytes: one JSON object a line, oldest entry first. Pure.

use agentbox_contracts::logs::LogEntry;

/// What an entry counts beside its line, so that many empty lines are bounded too.
pub const ENTRY_COST: usize = 32;

/// A line of the object is not an entry.
#[derive(Debug, thiserror::Error)]
#[error("line {number} of the archive is not a log entry")]
pub struct MalformedLine {
    /// 1 for the first.
    pub number: usize,
    pub source: serde_json::Error,
}

/// The newest of `entries`, of `limit_bytes` together. What of a longer line was cut off
/// stays away whole.
#[must_use]
pub fn newest(mut entries: Vec<LogEntry>, limit_bytes: usize) -> Vec<LogEntry> {
    let mut room = limit_bytes;
    let kept = entries
        .iter()
        .rev()
        .take_while(|entry| {
            let cost = entry.line.len() + ENTRY_COST;
            let fits = cost <= room;
            room = room.saturating_sub(cost);
            fits
        })
        .count();
    entries.split_off(entries.len() - kept)
}

/// # Errors
/// Never for entries that came from a box; as the serializer's otherwise.
pub fn encode(entries: &[LogEntry]) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut bytes, entry)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

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
    fn entries_survive_the_archive_byte_for_byte() {
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
    fn only_the_newest_entries_that_fit_are_kept() {
        let entries: Vec<LogEntry> = (1..=10).map(|n| entry(n, &[b'x'; 68])).collect();
        for (limit, first) in [(1000, 1), (999, 2), (200, 9), (100, 10)] {
            assert_eq!(newest(entries.clone(), limit)[0].sequence, first, "{limit}");
        }
        assert!(newest(entries, 99).is_empty());
        assert!(newest(Vec::new(), 99).is_empty());
    }

    #[test]
    fn an_archive_is_replaced_only_by_one_that_knows_more() {
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
