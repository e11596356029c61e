//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// How often [`repeat_until_below`] measures.
const ATTEMPTS: usize = 3;

/// Polls until `condition` holds.
///
/// # Panics
/// With `expected`, when it does not hold `within` that time.
pub async fn eventually(
    expected: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) {
    eventually_some(expected, within, async || condition().await.then_some(())).await;
}

/// Polls until `look` returns something. The last poll begins after `within`, so that a stall of the
/// machine does not end the wait without one.
///
/// # Panics
/// With `expected`, when it returns nothing `within` that time.
pub async fn eventually_some<T>(
    expected: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let begun = Instant::now();
    loop {
        let waited = begun.elapsed();
        if let Some(found) = look().await {
            return found;
        }
        assert!(waited < within, "not within {within:?}: {expected}");
        tokio::time::sleep(pause(waited)).await;
    }
}

/// The pause before the next poll: a tenth of the time waited, so that waiting tests leave the
/// machine to the system that they wait for, and notice its answer soon.
pub fn pause(waited: Duration) -> Duration {
    (waited / 10).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Repeats `attempt`, which measures a duration, until that is less than `bound`: three times at most.
///
/// What the product waits for delays every attempt, a machine that stalls only one.
///
/// # Panics
/// When every attempt took `bound` or longer.
pub async fn repeat_until_below(bound: Duration, mut attempt: impl AsyncFnMut() -> Duration) {
    let mut times = Vec::new();
    loop {
        let took = attempt().await;
        if took < bound {
            return;
        }
        times.push(took);
        assert!(
            times.len() < ATTEMPTS,
            "every attempt took {bound:?} or longer: {times:?}"
        );
    }
}

/// Checks that the fastest of several runs took less than `bound`.
///
/// A poll or a grace period delays every run, a busy machine only some. `make bench` measures the
/// speed.
///
/// # Panics
/// When every run took `bound` or longer, or `times` is empty.
pub fn assert_fastest_below(mut times: Vec<Duration>, bound: Duration) {
    times.sort_unstable();
    let fastest = times[0];
    println!(
        "fastest {fastest:?}, p50 {:?}, slowest {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert!(fastest < bound, "the fastest took {fastest:?}");
}
