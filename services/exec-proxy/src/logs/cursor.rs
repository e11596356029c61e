//! A reader's position in an environment's output, and its selection of entries. Pure.

use agentbox_box_protocol::proto;
use agentbox_contracts::exec::LogsRequest;
use agentbox_contracts::logs::{LineStarts, LogEntry};
use chrono::{DateTime, Utc};

/// The position and the filters of a reader. It moves forward with the sent entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCursor {
    /// The sequence of the next entry. `None`: the first entry.
    next: Option<u64>,
    /// The number of newest lines; all pieces of a line are one.
    tail: Option<u64>,
    since: Option<DateTime<Utc>>,
    pub follow: bool,
}

/// The entries to send from a source.
#[derive(Debug, PartialEq, Eq)]
pub struct Selection {
    /// The number of selected entries that are no longer kept. At most this number: a lost entry
    /// may have been a piece of a line, or older than asked.
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
        self.next = Some(self.next.unwrap_or(0).max(last.saturating_add(1)));
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
        let mut expected = self.next.unwrap_or(1);
        let mut starts = LineStarts::default();
        // The selected entries, each with the number of missing ones before it.
        let mut selected: Vec<(u64, LogEntry)> = Vec::new();
        // Where the selected lines begin.
        let mut lines: Vec<usize> = Vec::new();
        for entry in kept {
            let begins_line = starts.begins_line(entry.stream, entry.partial);
            if entry.sequence < expected {
                continue;
            }
            let missing = entry.sequence - expected;
            expected = entry.sequence.saturating_add(1);
            // Missing entries are older than the entry after them.
            if self.since.is_some_and(|since| entry.timestamp < since) {
                continue;
            }
            // The first entry may continue a line whose first piece is lost.
            if begins_line || selected.is_empty() {
                lines.push(selected.len());
            }
            selected.push((missing, entry));
        }
        let mut before = selected.first().map_or(0, |(missing, _)| *missing);
        if let Some(tail) = self.tail {
            let kept_lines = lines.len() as u64;
            before = before.min(tail.saturating_sub(kept_lines));
            let older = usize::try_from(kept_lines.saturating_sub(tail)).unwrap_or(usize::MAX);
            selected.drain(..lines.get(older).copied().unwrap_or(selected.len()));
        }
        let between: u64 = selected.iter().skip(1).map(|(missing, _)| *missing).sum();
        let entries: Vec<LogEntry> = selected.into_iter().map(|(_, entry)| entry).collect();
        if let Some(last) = entries.last() {
            self.advance_to(last.sequence);
        }
        Selection {
            lost: before + between,
            entries,
        }
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
            (None, None, None, 4, 5..=10),
            (Some(1), None, None, 4, 5..=10),
            (Some(3), None, None, 2, 5..=10),
            (Some(7), None, None, 0, 7..=10),
            (None, Some(2), None, 0, 9..=10),
            (None, Some(6), None, 0, 5..=10),
            (None, Some(8), None, 2, 5..=10),
            (None, Some(99), None, 4, 5..=10),
            (Some(7), Some(2), None, 0, 9..=10),
            (None, None, Some(4), 4, 5..=10),
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
    fn tail_counts_all_pieces_of_a_line_as_one() {
        let mut entries = kept(5..=10);
        // The lines are 5, 6 to 8, 9 and the unfinished 10.
        for piece in [1, 2, 5] {
            entries[piece].partial = true;
        }
        for (tail, lost, first) in [(1, 0, 10), (2, 0, 9), (3, 0, 6), (4, 0, 5), (5, 1, 5)] {
            let mut cursor = LogCursor::new(&request(None, Some(tail), None));
            let selection = cursor.select(entries.clone());
            assert_eq!(selection.lost, lost, "{tail}");
            assert_eq!(selection.entries[0].sequence, first, "{tail}");
        }
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
