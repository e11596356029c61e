//! Counts the starts and the ends of executions for the metrics: each once in this process, however
//! often it is read.
//!
//! * I1. Memory is bounded: an execution is 8 bytes, and beyond [`MAX_COUNTED`] the oldest is forgotten.
//!   If its end is read again, it is counted again.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher as _};

use agentbox_contracts::executions::ExecutionStatus;
use agentbox_contracts::ids::EnvironmentId;
use parking_lot::Mutex;

use crate::metrics;

/// The running executions, and the ended ones, that are remembered.
const MAX_COUNTED: usize = 16 * 1024;

static COUNTED: Mutex<Counted> = Mutex::new(Counted {
    running: Remembered::new(),
    ended: Remembered::new(),
});

struct Counted {
    running: Remembered,
    ended: Remembered,
}

/// Counts an execution that a start has returned.
pub fn started(environment: &EnvironmentId, execution: &str, status: ExecutionStatus) {
    let key = key(environment, execution);
    let mut counted = COUNTED.lock();
    if counted.ended.contains(key) || !counted.running.insert(key) {
        return;
    }
    metrics::execution_started();
    seen_as(&mut counted, key, status, false);
}

/// Counts the end of an execution that a request has read.
pub fn seen(environment: &EnvironmentId, execution: &str, status: ExecutionStatus) {
    seen_as(
        &mut COUNTED.lock(),
        key(environment, execution),
        status,
        false,
    );
}

/// Counts the end of an execution whose environment has ended.
pub fn environment_ended(environment: &EnvironmentId, execution: &str, status: ExecutionStatus) {
    seen_as(
        &mut COUNTED.lock(),
        key(environment, execution),
        status,
        true,
    );
}

/// `is_over`: also if the status says that it is active.
fn seen_as(counted: &mut Counted, key: u64, status: ExecutionStatus, is_over: bool) {
    if is_over || !status.is_active() {
        counted.running.remove(key);
        if counted.ended.insert(key) {
            metrics::execution_ended(status);
        }
    }
    metrics::executions_running(counted.running.len());
}

fn key(environment: &EnvironmentId, execution: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    environment.as_str().hash(&mut hasher);
    execution.hash(&mut hasher);
    hasher.finish()
}

/// The newest [`MAX_COUNTED`] keys.
struct Remembered {
    keys: BTreeSet<u64>,
    /// Oldest first. It may have removed keys.
    order: VecDeque<u64>,
}

impl Remembered {
    const fn new() -> Self {
        Self {
            keys: BTreeSet::new(),
            order: VecDeque::new(),
        }
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    fn contains(&self, key: u64) -> bool {
        self.keys.contains(&key)
    }

    /// False: it is known.
    fn insert(&mut self, key: u64) -> bool {
        if !self.keys.insert(key) {
            return false;
        }
        self.order.push_back(key);
        while self.order.len() > MAX_COUNTED {
            if let Some(oldest) = self.order.pop_front() {
                self.keys.remove(&oldest);
            }
        }
        true
    }

    fn remove(&mut self, key: u64) {
        self.keys.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_keys_are_bounded_and_known_once() {
        let mut remembered = Remembered::new();
        assert!(remembered.insert(0));
        assert!(!remembered.insert(0));
        for key in 1..=MAX_COUNTED as u64 {
            assert!(remembered.insert(key));
        }
        assert_eq!(remembered.len(), MAX_COUNTED);
        assert!(!remembered.contains(0));
        remembered.remove(7);
        assert_eq!(remembered.len(), MAX_COUNTED - 1);
        for key in 0..10 * MAX_COUNTED as u64 {
            remembered.insert(key);
            remembered.remove(key);
        }
        assert!(remembered.order.len() <= MAX_COUNTED);
    }

    #[test]
    fn executions_of_two_environments_have_two_keys() {
        let (one, other) = (EnvironmentId::random(), EnvironmentId::random());
        assert_ne!(key(&one, "exec-a"), key(&other, "exec-a"));
        assert_ne!(key(&one, "exec-a"), key(&one, "exec-b"));
        assert_eq!(key(&one, "exec-a"), key(&one, "exec-a"));
    }
}
