//! Decides when failed work on a box is tried again. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agentbox_contracts::ids::EnvironmentId;

/// The pause after the first failure. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The boxes whose last attempt failed. The others are due at any time.
#[derive(Debug, Default)]
pub struct Retries(BTreeMap<EnvironmentId, Retry>);

#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Retries {
    #[must_use]
    pub fn is_due(&self, id: &EnvironmentId, now: Instant) -> bool {
        self.0.get(id).is_none_or(|retry| retry.at <= now)
    }

    /// Records a failure, and returns the pause until the box is due again.
    pub fn failed(&mut self, id: &EnvironmentId, now: Instant) -> Duration {
        let former = self.0.get(id).map(|retry| retry.pause * 2);
        let pause = former.unwrap_or(FIRST_PAUSE).min(MAX_PAUSE);
        let at = now + pause;
        self.0.insert(id.clone(), Retry { at, pause });
        pause
    }

    pub fn succeeded(&mut self, id: &EnvironmentId) {
        self.0.remove(id);
    }

    /// Drops the failures of the other boxes.
    pub fn retain(&mut self, is_kept: impl Fn(&EnvironmentId) -> bool) {
        self.0.retain(|id, _| is_kept(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_grows_with_each_failure_of_one_box_only() {
        let (box_a, box_b) = (EnvironmentId::random(), EnvironmentId::random());
        let start = Instant::now();
        let mut retries = Retries::default();
        assert!(retries.is_due(&box_a, start));
        let mut pauses = Vec::new();
        let mut now = start;
        for _ in 0..6 {
            let pause = retries.failed(&box_a, now);
            assert!(!retries.is_due(&box_a, now));
            assert!(retries.is_due(&box_b, now));
            pauses.push(pause.as_secs());
            now += pause;
            assert!(retries.is_due(&box_a, now));
        }
        assert_eq!(pauses, [2, 4, 8, 16, 30, 30]);
        retries.succeeded(&box_a);
        assert_eq!(retries.failed(&box_a, now), FIRST_PAUSE);
        retries.retain(|id| *id != box_a);
        assert!(retries.is_due(&box_a, now));
    }
}
