//! Where a reader is in an environment's output, and what it wants of a source. Pure.

use agentbox_box_protocol::proto;
use agentbox_contracts::exec::LogsRequest;
use agentbox_contracts::logs::LogEntry;
use chrono::{DateTime, Utc};

/// What is still wanted. Moves forward with what was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The first sequence wanted. `None`: from the oldest that is kept.
    next: Option<u64>,
    tail: Option<u64>,
    since: Option<DateTime<Utc>>,
    pub follow: bool,
}

/// What to give of a source's entries.
#[derive(Debug, PartialEq, Eq)]
pub struct Selection {
    /// Wanted and not there any more.
    pub lost: u64,
    pub entries: Vec<LogEntry>,
}

impl Wanted {
    #[must_use]
    pub fn new(request: &LogsRequest) -> Self {
        Self {
            next: request.from_sequence.filter(|sequence| *sequence > 1),
            tail: request.tail,
            since: request.since,
            follow: request.follow,
        }
    }

    /// The same as boxd is asked for it.
    #[must_use]
    pub fn request(&self) -> proto::LogsRequest {
        proto::LogsRequest {
            from_sequence: self.next.unwrap_or(0),
            tail: self.tail,
            since_unix_nanos: self.since.and_then(|since| since.timestamp_nanos_opt()),
            follow: self.follow,
        }
    }

    /// Only what comes from now on: the source must first say where it is.
    #[must_use]
    pub fn is_only_the_future(&self) -> bool {
        self.follow && self.tail == Some(0)
    }

    /// The source is at `last`: what comes after it is wanted, all of it.
    pub fn begin_after(&mut self, last: u64) {
        self.next = Some(self.next.unwrap_or(0).max(last + 1));
        self.tail = None;
    }

    /// A follower found nothing that its tail could count: all that comes is wanted.
    pub fn nothing_was_there(&mut self) {
        if self.follow && self.next.is_none() {
            self.tail = None;
        }
    }

    /// `sequence` was given.
    pub fn passed(&mut self, sequence: u64) {
        self.begin_after(sequence);
    }

    /// Takes what is wanted of `kept`, all that a source has, oldest first, and moves on.
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
            self.passed(last.sequence);
        }
        Selection { lost, entries }
    }

    /// How many entries are missing before and between `entries`. What is before a tail
    /// or an instant was not wanted.
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
    fn what_is_given_follows_from_sequence_tail_and_since() {
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
            let mut wanted = Wanted::new(&request(from, tail, since));
            let selection = wanted.select(kept(5..=10));
            assert_eq!(selection.lost, lost, "{from:?} {tail:?} {since:?}");
            assert_eq!(
                selection.entries,
                kept(given),
                "{from:?} {tail:?} {since:?}"
            );
        }
        assert_eq!(
            Wanted::new(&request(Some(11), None, None))
                .select(kept(5..=10))
                .entries,
            []
        );
        assert_eq!(
            Wanted::new(&request(None, Some(0), None))
                .select(kept(5..=10))
                .entries,
            []
        );
    }

    #[test]
    fn going_from_source_to_source_neither_repeats_nor_leaves_out() {
        let mut wanted = Wanted::new(&request(None, Some(2), None));
        assert_eq!(wanted.select(kept(1..=4)).entries, kept(3..=4));
        // The next source has more, before and after.
        let selection = wanted.select(kept(1..=9));
        assert_eq!((selection.lost, selection.entries), (0, kept(5..=9)));
        // And one that has forgotten some.
        let selection = wanted.select(kept(12..=13));
        assert_eq!((selection.lost, selection.entries), (2, kept(12..=13)));
        assert_eq!(wanted.select(kept(12..=13)).entries, []);
        // And one with a hole.
        let mut holed = kept(14..=15);
        holed.extend(kept(18..=18));
        assert_eq!(wanted.clone().select(holed).lost, 2);
        assert_eq!(wanted.request().from_sequence, 14);
        assert_eq!(wanted.request().tail, None);
    }

    #[test]
    fn only_the_future_is_all_that_comes_after_where_the_source_is() {
        let mut wanted = Wanted::new(&LogsRequest {
            tail: Some(0),
            follow: true,
            ..LogsRequest::default()
        });
        assert!(wanted.is_only_the_future());
        wanted.begin_after(4);
        assert!(!wanted.is_only_the_future());
        assert_eq!(wanted.select(kept(1..=6)).entries, kept(5..=6));
        // A tail of nothing, likewise.
        let mut wanted = Wanted::new(&LogsRequest {
            tail: Some(1),
            follow: true,
            ..LogsRequest::default()
        });
        wanted.nothing_was_there();
        assert_eq!(wanted.select(kept(1..=3)).entries, kept(1..=3));
    }
}
