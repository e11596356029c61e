//! The search of the sequence at which a reader of the newest events begins. Pure.
//!
//! JetStream counts the events from a sequence on, and seeks by sequence only. So the search probes
//! sequences, until at least `max` and at most twice as many events follow one; the reader drops the
//! surplus.

/// Where a reader of the newest events begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) sequence: u64,
    /// How many events the reader drops first.
    pub(super) surplus: u64,
}

/// The state of a search.
#[derive(Debug)]
pub(super) struct Search {
    max: u64,
    /// From here on more than twice `max` events match.
    low: u64,
    counted_low: u64,
    /// From here on fewer than `max` events match.
    high: u64,
    counted_high: u64,
    probed: u64,
    probes: u32,
}

impl Search {
    /// Begins a search of the newest `max` of `stored` events.
    ///
    /// # Errors
    /// The start, when nothing has to be searched: all stored events are few enough.
    pub(super) fn begin(max: u64, stored: u64) -> Result<Self, Start> {
        if stored <= max.saturating_mul(2) {
            return Err(Start {
                sequence: 0,
                surplus: stored.saturating_sub(max),
            });
        }
        Ok(Self {
            max,
            low: 0,
            counted_low: stored,
            high: 0,
            counted_high: 0,
            probed: 0,
            probes: 0,
        })
    }

    /// The sequences of the first and the last event of the stream.
    pub(super) fn set_bounds(&mut self, first: u64, last: u64) {
        (self.low, self.high) = (first, last + 1);
    }

    /// The next sequence from which events are counted; `None` when none is left, because events were
    /// removed meanwhile.
    pub(super) fn probe(&mut self) -> Option<u64> {
        if self.high <= self.low + 1 {
            return None;
        }
        // Every second probe halves the range, so that the search ends soon wherever the events are.
        // The others assume that they are spread evenly.
        let range = self.high - self.low;
        let guess = if self.probes.is_multiple_of(2) {
            let wanted = (self.max + self.max / 2).saturating_sub(self.counted_high);
            let between = self.counted_low.saturating_sub(self.counted_high).max(1);
            let distance = u128::from(range) * u128::from(wanted) / u128::from(between);
            self.high
                .saturating_sub(u64::try_from(distance).unwrap_or(u64::MAX))
        } else {
            self.low + range / 2
        };
        self.probes += 1;
        self.probed = guess.clamp(self.low + 1, self.high - 1);
        Some(self.probed)
    }

    /// Takes the number of events from the probed sequence on. Returns the start when it is found.
    pub(super) fn narrow(&mut self, counted: u64) -> Option<Start> {
        if counted > self.max.saturating_mul(2) {
            (self.low, self.counted_low) = (self.probed, counted);
        } else if counted < self.max {
            (self.high, self.counted_high) = (self.probed, counted);
        } else {
            return Some(Start {
                sequence: self.probed,
                surplus: counted - self.max,
            });
        }
        None
    }

    /// The start when no sequence is left to probe: fewer than `max` events match from there on.
    pub(super) const fn end(&self) -> Start {
        Start {
            sequence: self.high,
            surplus: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches in a stream whose matching events have these sequences, and returns the start and the
    /// number of counts.
    fn search(matching: &[u64], last: u64, max: u64) -> (Start, u32) {
        let from =
            |sequence: u64| matching.iter().filter(|event| **event >= sequence).count() as u64;
        let mut search = match Search::begin(max, from(0)) {
            Ok(search) => search,
            Err(start) => return (start, 0),
        };
        search.set_bounds(1, last);
        loop {
            let Some(sequence) = search.probe() else {
                return (search.end(), search.probes);
            };
            if let Some(start) = search.narrow(from(sequence)) {
                return (start, search.probes);
            }
        }
    }

    #[test]
    fn start_of_the_newest_events_is_found_with_few_counts() {
        let last = 100_000;
        let even: Vec<u64> = (1..=last).step_by(7).collect();
        let old: Vec<u64> = (1..=5_000).collect();
        let new: Vec<u64> = (last - 5_000..=last).collect();
        let one_at_the_end: Vec<u64> = (1..=5_000).chain([last]).collect();
        for (case, matching, most_counts) in [
            ("even", &even, 2),
            ("old", &old, 24),
            ("new", &new, 24),
            ("one at the end", &one_at_the_end, 24),
        ] {
            for max in [10, 1_000] {
                let (start, counts) = search(matching, last, max);
                let found = matching.iter().filter(|event| **event >= start.sequence);
                assert_eq!(found.count() as u64 - start.surplus, max, "{case} {max}");
                assert!(counts <= most_counts, "{case} {max}: {counts} counts");
            }
        }
    }

    #[test]
    fn few_events_are_all_read_and_the_surplus_is_dropped() {
        let matching: Vec<u64> = (1..=20).collect();
        for (max, surplus) in [(10, 10), (19, 1), (20, 0), (99, 0)] {
            let expected = Start {
                sequence: 0,
                surplus,
            };
            assert_eq!(search(&matching, 20, max), (expected, 0), "{max}");
        }
    }
}
