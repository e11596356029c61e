//! Counting without the bus: the same windows, of this replica alone.
//!
//! * I1. Bounded: windows of a past minute are forgotten, and beyond [`MAX_KEYS`] callers
//!   in one minute the rest share one counter.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

const MAX_KEYS: usize = 50_000;
/// Whom callers beyond [`MAX_KEYS`] are counted as.
const OVERFLOW: &str = "";

#[derive(Default)]
pub(crate) struct LocalWindows {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    window: u64,
    used: HashMap<String, u64>,
}

impl LocalWindows {
    /// Adds one to `key` in `window` and returns its total.
    pub(crate) fn count(&self, key: String, window: u64) -> u64 {
        // The map is whole whatever panicked while holding the lock.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.window != window {
            state.window = window;
            state.used.clear();
        }
        let key = if state.used.len() >= MAX_KEYS && !state.used.contains_key(&key) {
            OVERFLOW.to_owned()
        } else {
            key
        };
        let used = state.used.entry(key).or_insert(0);
        *used += 1;
        *used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_counted_alone_and_anew_in_each_window() {
        let windows = LocalWindows::default();
        let count = |key: &str, window| windows.count(key.to_owned(), window);
        assert_eq!(count("a", 1), 1);
        assert_eq!(count("a", 1), 2);
        assert_eq!(count("b", 1), 1);
        assert_eq!(count("a", 2), 1);
    }

    #[test]
    fn memory_is_bounded_and_the_rest_still_counted() {
        let windows = LocalWindows::default();
        for n in 0..MAX_KEYS {
            assert_eq!(windows.count(n.to_string(), 1), 1);
        }
        assert_eq!(windows.count("one more".into(), 1), 1);
        assert_eq!(windows.count("and another".into(), 1), 2);
        assert_eq!(windows.count("0".into(), 1), 2);
        let state = windows.state.lock().unwrap();
        assert_eq!(state.used.len(), MAX_KEYS + 1);
    }
}
