//! The last answers about the usage of boxes, so that frequent requests do not each reach the API
//! server.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::Usage;
use parking_lot::Mutex;

/// The pause before a cluster that serves no metrics is asked again.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(60);
/// How long an answer is current: no metrics server measures more often.
const FRESH: Duration = Duration::from_secs(5);
/// The most boxes whose answers are cached.
const MAX_BOXES: usize = 1_024;

#[derive(Debug, Default)]
pub struct UsageCache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// When the cluster last refused to serve metrics.
    unavailable_at: Option<Instant>,
    boxes: HashMap<EnvironmentId, (Instant, Option<Usage>)>,
}

impl UsageCache {
    /// The cached answer; `None` when the cluster must be asked.
    #[allow(
        clippy::option_option,
        reason = "an answer may be that the cluster has not measured the box"
    )]
    pub fn cached(&self, id: &EnvironmentId) -> Option<Option<Usage>> {
        let entries = self.0.lock();
        let unavailable = entries.unavailable_at;
        if unavailable.is_some_and(|at| at.elapsed() < UNAVAILABLE_FOR) {
            return Some(None);
        }
        let (at, usage) = entries.boxes.get(id)?;
        (at.elapsed() < FRESH).then_some(*usage)
    }

    pub fn insert(&self, id: &EnvironmentId, usage: Option<Usage>) {
        let mut entries = self.0.lock();
        if entries.boxes.len() >= MAX_BOXES {
            entries.boxes.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        if entries.boxes.len() < MAX_BOXES {
            entries.boxes.insert(id.clone(), (Instant::now(), usage));
        }
    }

    pub fn mark_unavailable(&self) {
        self.0.lock().unavailable_at = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::units::{Bytes, MilliCpu};

    use super::*;

    #[test]
    fn usage_answer_is_cached_including_none() {
        let cache = UsageCache::default();
        let (id, other) = (EnvironmentId::random(), EnvironmentId::random());
        assert_eq!(cache.cached(&id), None);
        let usage = Some(Usage {
            cpu: MilliCpu(1),
            memory: Bytes(1),
        });
        cache.insert(&id, usage);
        assert_eq!(cache.cached(&id), Some(usage));
        assert_eq!(cache.cached(&other), None);
        cache.mark_unavailable();
        assert_eq!(cache.cached(&other), Some(None));
    }

    #[test]
    fn usage_cache_is_bounded() {
        let cache = UsageCache::default();
        for _ in 0..=MAX_BOXES {
            cache.insert(&EnvironmentId::random(), None);
        }
        assert_eq!(cache.0.lock().boxes.len(), MAX_BOXES);
    }
}
