//! The current usage of a running box. It is optional: if the exec-proxy does not answer at once,
//! the environment is returned without it.
//!
//! * I1. A replica asks for the usage of one environment once at a time, and once in [`MAX_AGE`] if the box
//!   answers; the requests meanwhile share the answer. boxd measures at most once a second too, so usage is at
//!   most 2 seconds old. A missing answer is not shared with later requests: a box that has just started
//!   answers the next one.
//! * I2. At most [`MAX_ENTRIES`] answers are kept. Beyond that each request asks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::exec::rpc::GetUsage;
use agentbox_contracts::exec::{UsageReply, UsageRequest};
use agentbox_contracts::ids::EnvironmentId;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::metrics;
use crate::state::Gateway;

const DEADLINE: Duration = Duration::from_millis(300);
/// For how long an answer is used, from the moment when it was asked for.
const MAX_AGE: Duration = Duration::from_secs(1);
const MAX_ENTRIES: usize = 10_000;

/// Reads the usage of a running box; `None` if it is not running or does not answer in time.
pub(super) async fn read(gateway: &Gateway, environment: &Environment) -> Option<UsageReply> {
    let address = environment
        .address
        .filter(|_| environment.status == Status::Running)?;
    let asked = || ask(gateway, environment, address);
    match gateway
        .usage
        .entry(&environment.id, address, Instant::now())
    {
        Some(entry) => entry.answer.get_or_init(asked).await.clone(),
        None => {
            metrics::limit_reached("usage_cache");
            asked().await
        }
    }
}

async fn ask(
    gateway: &Gateway,
    environment: &Environment,
    address: SocketAddr,
) -> Option<UsageReply> {
    let request = UsageRequest {
        environment: environment.id.clone(),
        address,
    };
    let usage = gateway
        .bus
        .call_cluster::<GetUsage>(&environment.cluster, &request, DEADLINE)
        .await;
    match usage {
        Ok(usage) => Some(usage),
        Err(error) => {
            tracing::debug!(error = %ErrorChain(&error), "the usage of a box could not be read");
            None
        }
    }
}

/// The answers of the last second.
pub(crate) struct UsageCache(Mutex<Answers>);

struct Answers {
    by_environment: HashMap<EnvironmentId, Arc<Entry>>,
    /// When old answers were removed.
    swept_at: Instant,
}

struct Entry {
    address: SocketAddr,
    asked_at: Instant,
    /// Set by the first request that gets an answer. `None`: the box did not answer.
    answer: OnceCell<Option<UsageReply>>,
}

impl Default for UsageCache {
    fn default() -> Self {
        Self(Mutex::new(Answers {
            by_environment: HashMap::new(),
            swept_at: Instant::now(),
        }))
    }
}

impl UsageCache {
    /// The answer for this box that is recent enough, or one that is to be set. `None` at the limit.
    fn entry(&self, id: &EnvironmentId, address: SocketAddr, now: Instant) -> Option<Arc<Entry>> {
        let is_recent = |entry: &Entry| {
            let is_missing = matches!(entry.answer.get(), Some(None));
            !is_missing && now.saturating_duration_since(entry.asked_at) < MAX_AGE
        };
        let mut answers = self.0.lock();
        let known = answers.by_environment.get(id);
        if let Some(entry) = known.filter(|entry| entry.address == address && is_recent(entry)) {
            return Some(Arc::clone(entry));
        }
        if now.saturating_duration_since(answers.swept_at) >= MAX_AGE {
            answers.by_environment.retain(|_, entry| is_recent(entry));
            answers.swept_at = now;
        }
        if answers.by_environment.len() >= MAX_ENTRIES {
            return None;
        }
        let entry = Arc::new(Entry {
            address,
            asked_at: now,
            answer: OnceCell::new(),
        });
        answers
            .by_environment
            .insert(id.clone(), Arc::clone(&entry));
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn answer_of_one_box_is_shared_for_a_second() {
        let (cache, id) = (UsageCache::default(), EnvironmentId::random());
        let began = Instant::now();
        let first = cache.entry(&id, address(1), began).unwrap();
        let just_before = began + MAX_AGE - Duration::from_millis(1);
        let same = cache.entry(&id, address(1), just_before).unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        let later = cache.entry(&id, address(1), began + MAX_AGE).unwrap();
        assert!(!Arc::ptr_eq(&first, &later));
        let moved = cache.entry(&id, address(2), began + MAX_AGE).unwrap();
        assert!(!Arc::ptr_eq(&later, &moved), "the box was created again");
        let other = EnvironmentId::random();
        let other = cache.entry(&other, address(2), began + MAX_AGE).unwrap();
        assert!(!Arc::ptr_eq(&other, &moved));
    }

    #[test]
    fn missing_answer_is_asked_for_again() {
        let (cache, id) = (UsageCache::default(), EnvironmentId::random());
        let began = Instant::now();
        let first = cache.entry(&id, address(1), began).unwrap();
        first.answer.set(None).unwrap();
        let second = cache.entry(&id, address(1), began).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        let reply = UsageReply {
            cpu_milli: 1,
            memory_bytes: 2,
        };
        second.answer.set(Some(reply)).unwrap();
        let third = cache.entry(&id, address(1), began).unwrap();
        assert!(Arc::ptr_eq(&second, &third));
    }

    #[test]
    fn full_cache_has_no_entry_until_old_ones_are_removed() {
        let cache = UsageCache::default();
        let began = Instant::now();
        for _ in 0..MAX_ENTRIES {
            let id = EnvironmentId::random();
            assert!(cache.entry(&id, address(1), began).is_some());
        }
        let id = EnvironmentId::random();
        assert!(cache.entry(&id, address(1), began).is_none());
        let later = began + MAX_AGE + MAX_AGE;
        assert!(cache.entry(&id, address(1), later).is_some());
        assert_eq!(cache.0.lock().by_environment.len(), 1);
    }

    #[tokio::test]
    async fn request_that_is_cancelled_leaves_the_question_to_the_next() {
        let cache = UsageCache::default();
        let id = EnvironmentId::random();
        let entry = cache.entry(&id, address(1), Instant::now()).unwrap();
        let never = entry.answer.get_or_init(std::future::pending);
        assert!(futures::poll!(Box::pin(never)).is_pending());
        let reply = UsageReply {
            cpu_milli: 1,
            memory_bytes: 2,
        };
        let answer = entry
            .answer
            .get_or_init(|| async { Some(reply.clone()) })
            .await;
        assert_eq!(answer.as_ref(), Some(&reply));
    }
}
