//! Counts requests in this replica alone, while the bus cannot count.
//!
//! * I1. Its size is bounded. A new window drops the previous one. In one window the callers after
//!   the first [`MAX_KEYS`] share one counter.

use std::collections::HashMap;

use parking_lot::Mutex;

const MAX_KEYS: usize = 50_000;
/// The key that callers beyond [`MAX_KEYS`] share.
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
        let mut state = self.state.lock();
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

    /// Takes one from `key` in `window`, if it was counted here.
    pub(crate) fn uncount(&self, key: &str, window: u64) {
        let mut state = self.state.lock();
        if state.window == window
            && let Some(used) = state.used.get_mut(key)
        {
            *used = used.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_and_window_is_counted_separately() {
        let windows = LocalWindows::default();
        let count = |key: &str, window| windows.count(key.to_owned(), window);
        assert_eq!(count("a", 1), 1);
        assert_eq!(count("a", 1), 2);
        assert_eq!(count("b", 1), 1);
        assert_eq!(count("a", 2), 1);
        windows.uncount("a", 2);
        windows.uncount("a", 2);
        windows.uncount("b", 1);
        assert_eq!(count("a", 2), 1);
    }

    #[test]
    fn full_window_counts_further_keys_together() {
        let windows = LocalWindows::default();
        for n in 0..MAX_KEYS {
            assert_eq!(windows.count(n.to_string(), 1), 1);
        }
        assert_eq!(windows.count("one more".into(), 1), 1);
        assert_eq!(windows.count("and another".into(), 1), 2);
        assert_eq!(windows.count("0".into(), 1), 2);
        let state = windows.state.lock();
        assert_eq!(state.used.len(), MAX_KEYS + 1);
    }
}
