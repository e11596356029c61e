//! A reader's position in an environment's output, and its selection of entries. Pure.

use agentbox_box_protocol::proto;
use agentbox_contracts::exec::LogsRequest;
use agentbox_contracts::logs::LogEntry;
use chrono::{DateTime, Utc};

/// The position and the filters of a reader. It moves forward with the sent entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCursor {
    /// The sequence of the next entry. `None`: the oldest kept entry.
    next: Option<u64>,
    tail: Option<u64>,
    since: Option<DateTime<Utc>>,
    pub follow: bool,
}

/// The entries to send from a source.
#[derive(Debug, PartialEq, Eq)]
pub struct Selection {
    /// The number of selected entries that are no longer kept.
    pub lost: u64,
    pub entries: Vec<LogEntry>,
}

impl LogCursor {
    #[must_use]
    pub fn new(request: &LogsRequest) -> Self {
        Self {
            next: request.from_sequence.filter(|sequence| *sequence > 1),
            tail: request.tail,
            since: request.since,
            follow: request.follow,
        }
    }

    /// The request for boxd.
    #[must_use]
    pub fn request(&self) -> proto::LogsRequest {
        proto::LogsRequest {
            from_sequence: self.next.unwrap_or(0),
            tail: self.tail,
            since_unix_nanos: self.since.and_then(|since| since.timestamp_nanos_opt()),
            follow: self.follow,
        }
    }

    /// Whether only new entries are selected. The source's last sequence is then needed
    /// first, for [`Self::seek_after`].
    #[must_use]
    pub fn is_tail_only(&self) -> bool {
        self.follow && self.tail == Some(0)
    }

    /// Selects all entries after `last`.
    pub fn seek_after(&mut self, last: u64) {
        self.next = Some(self.next.unwrap_or(0).max(last + 1));
        self.tail = None;
    }

    /// Clears a follower's tail when the source had no entries: all new ones are selected.
    pub fn clear_tail(&mut self) {
        if self.follow && self.next.is_none() {
            self.tail = None;
        }
    }

    /// Moves past `sequence`, which was sent.
    pub fn advance_to(&mut self, sequence: u64) {
        self.seek_after(sequence);
    }

    /// Selects from `kept`, all entries of a source, oldest first, and moves past them.
    pub fn select(&mut self, kept: Vec<LogEntry>) -> Selection {
        let from = self.next.unwrap_or(0);
        let mut entries: Vec<LogEntry> = kept
            .into_iter()
            .filter(|entry| entry.sequence >= from)
            .filter(|entry| self.since.is_none_or(|since| entry.timestamp >= since))
            .collect();
        if let Some(tail) = self.tail {
            let tail = usize::try_from(tail).unwrap_or(usize::MAX);
            entries = entries.split_off(entries.len().saturating_sub(tail));
        }
        let lost = self.missing(&entries);
        if let Some(last) = entries.last() {
            self.advance_to(last.sequence);
        }
        Selection { lost, entries }
    }

    /// The number of entries missing before and between `entries`. Entries before a tail or
    /// an instant are not selected, so they do not count.
    fn missing(&self, entries: &[LogEntry]) -> u64 {
        if self.since.is_some() {
            return 0;
        }
        let mut expected = self.next.filter(|_| self.tail.is_none());
        let mut missing = 0;
        for entry in entries {
            let gap = expected.map_or(0, |expected| entry.sequence.saturating_sub(expected));
            missing += gap;
            expected = Some(entry.sequence + 1);
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::logs::OutputStream;

    use super::*;

    /// Entry `n` was printed at second `n`.
    fn kept(sequences: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
        sequences
            .map(|sequence| LogEntry {
                sequence,
                timestamp: at(sequence),
                stream: OutputStream::Stdout,
                line: Vec::new(),
                partial: false,
            })
            .collect()
    }

    fn at(second: u64) -> DateTime<Utc> {
        DateTime::from_timestamp_nanos(i64::try_from(second).unwrap() * 1_000_000_000)
    }

    fn request(from: Option<u64>, tail: Option<u64>, since: Option<u64>) -> LogsRequest {
        LogsRequest {
            from_sequence: from,
            tail,
            since: since.map(at),
            follow: false,
        }
    }

    #[test]
    fn selection_follows_sequence_tail_and_since() {
        // A source that keeps 5..=10.
        for (from, tail, since, lost, given) in [
            (None, None, None, 0, 5..=10),
            (Some(1), None, None, 0, 5..=10),
            (Some(3), None, None, 2, 5..=10),
            (Some(7), None, None, 0, 7..=10),
            (None, Some(2), None, 0, 9..=10),
            (None, Some(99), None, 0, 5..=10),
            (Some(7), Some(2), None, 0, 9..=10),
            (None, None, Some(8), 0, 8..=10),
            (Some(3), None, Some(6), 0, 6..=10),
            (None, Some(1), Some(8), 0, 10..=10),
        ] {
            let mut cursor = LogCursor::new(&request(from, tail, since));
            let selection = cursor.select(kept(5..=10));
            assert_eq!(selection.lost, lost, "{from:?} {tail:?} {since:?}");
            assert_eq!(
                selection.entries,
                kept(given),
                "{from:?} {tail:?} {since:?}"
            );
        }
        assert_eq!(
            LogCursor::new(&request(Some(11), None, None))
                .select(kept(5..=10))
                .entries,
            []
        );
        assert_eq!(
            LogCursor::new(&request(None, Some(0), None))
                .select(kept(5..=10))
                .entries,
            []
        );
    }

    #[test]
    fn cursor_moves_between_sources_without_repeat_or_loss() {
        let mut cursor = LogCursor::new(&request(None, Some(2), None));
        assert_eq!(cursor.select(kept(1..=4)).entries, kept(3..=4));
        // The next source has more, before and after.
        let selection = cursor.select(kept(1..=9));
        assert_eq!((selection.lost, selection.entries), (0, kept(5..=9)));
        // And one that has dropped some.
        let selection = cursor.select(kept(12..=13));
        assert_eq!((selection.lost, selection.entries), (2, kept(12..=13)));
        assert_eq!(cursor.select(kept(12..=13)).entries, []);
        // And one with a hole.
        let mut holed = kept(14..=15);
        holed.extend(kept(18..=18));
        assert_eq!(cursor.clone().select(holed).lost, 2);
        assert_eq!(cursor.request().from_sequence, 14);
        assert_eq!(cursor.request().tail, None);
    }

    #[test]
    fn tail_only_cursor_selects_entries_after_current_position() {
        let mut cursor = LogCursor::new(&LogsRequest {
            tail: Some(0),
            follow: true,
            ..LogsRequest::default()
        });
        assert!(cursor.is_tail_only());
        cursor.seek_after(4);
        assert!(!cursor.is_tail_only());
        assert_eq!(cursor.select(kept(1..=6)).entries, kept(5..=6));
        // The same for a tail of a source without entries.
        let mut cursor = LogCursor::new(&LogsRequest {
            tail: Some(1),
            follow: true,
            ..LogsRequest::default()
        });
        cursor.clear_tail();
        assert_eq!(cursor.select(kept(1..=3)).entries, kept(1..=3));
    }
}
