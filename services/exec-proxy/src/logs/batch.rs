//! Collects entries into messages of bounded size. Pure.

use agentbox_contracts::logs::LogEntry;

/// The encoded size limit of one message's entries, in bytes.
const BATCH_BYTES: usize = 32 * 1024;
const BATCH_ENTRIES: usize = 256;
/// The largest encoded size of an entry without its line, in bytes.
const ENTRY_BYTES: usize = 40;

/// Collects entries until a message is full or the caller takes them.
#[derive(Default)]
pub struct Batches {
    held: Vec<LogEntry>,
    bytes: usize,
}

impl Batches {
    /// Adds `entry`; returns the collected entries when it does not fit with them.
    pub fn push(&mut self, entry: LogEntry) -> Option<Vec<LogEntry>> {
        let bytes = ENTRY_BYTES + entry.line.len();
        let fits = self.held.len() < BATCH_ENTRIES && self.bytes + bytes <= BATCH_BYTES;
        let full = if fits { None } else { self.take() };
        self.bytes += bytes;
        self.held.push(entry);
        full
    }

    /// Takes the collected entries; `None` when there are none.
    pub fn take(&mut self) -> Option<Vec<LogEntry>> {
        self.bytes = 0;
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then_some(held)
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::exec::{FromBox, SessionMessage as _};
    use agentbox_contracts::logs::OutputStream;

    use super::*;

    fn gather(lines: impl Iterator<Item = usize>) -> Vec<Vec<LogEntry>> {
        let mut batches = Batches::default();
        let mut out = Vec::new();
        for (sequence, length) in lines.enumerate() {
            out.extend(batches.push(LogEntry {
                sequence: u64::MAX - sequence as u64,
                timestamp: chrono::DateTime::from_timestamp_nanos(1_700_000_000_123_456_789),
                stream: OutputStream::Stderr,
                line: vec![b'x'; length],
                partial: true,
            }));
        }
        out.extend(batches.take());
        out
    }

    #[test]
    fn batches_are_bounded_in_entries_and_bytes_and_complete() {
        for lengths in [
            vec![0; 1000],
            vec![100; 1000],
            vec![16 * 1024; 9],
            vec![1, 16_384, 1, 16_384, 1],
        ] {
            let batches = gather(lengths.iter().copied());
            let back: Vec<usize> = batches
                .iter()
                .flatten()
                .map(|entry| entry.line.len())
                .collect();
            assert_eq!(back, lengths);
            for batch in batches {
                assert!(!batch.is_empty() && batch.len() <= BATCH_ENTRIES);
                let body = FromBox::Logs(batch).encode();
                // The message itself adds a field number and a length.
                assert!(body.len() <= BATCH_BYTES + 8, "{}", body.len());
            }
        }
        assert!(gather(std::iter::empty()).is_empty());
    }
}
