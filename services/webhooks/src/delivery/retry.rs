//! When a failed delivery is attempted again. Pure.

use std::time::Duration;

/// The longest wait between two attempts.
const LAST: Duration = Duration::from_secs(6 * 3_600);

#[derive(Clone, Copy, Debug)]
pub struct Retries {
    pub attempts: u32,
    /// The wait before the second attempt.
    pub first: Duration,
}

impl Retries {
    /// The wait after the failed attempt number `attempt`, counted from 1. `None`: it was the last one.
    /// `spread`, 0 to 1, lengthens the wait by up to a quarter, so that deliveries that failed together
    /// are not repeated together.
    #[must_use]
    pub fn after(&self, attempt: u32, spread: f64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let factor = 3_u32.saturating_pow(attempt.saturating_sub(1));
        let wait = self.first.saturating_mul(factor).min(LAST);
        Some(wait.mul_f64(1.0 + spread.clamp(0.0, 1.0) / 4.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRIES: Retries = Retries {
        attempts: 10,
        first: Duration::from_secs(5),
    };

    #[test]
    fn wait_grows_up_to_the_longest_and_ends_with_the_last_attempt() {
        for (attempt, seconds) in [(1, 5), (2, 15), (3, 45), (8, 10_935), (9, 21_600)] {
            let wait = RETRIES.after(attempt, 0.0);
            assert_eq!(wait, Some(Duration::from_secs(seconds)), "{attempt}");
        }
        assert_eq!(RETRIES.after(10, 0.0), None);
        assert_eq!(RETRIES.after(u32::MAX, 0.0), None);
    }

    #[test]
    fn spread_lengthens_the_wait_by_a_quarter_at_most() {
        assert_eq!(RETRIES.after(1, 1.0), Some(Duration::from_millis(6_250)));
        assert_eq!(RETRIES.after(1, 9.0), Some(Duration::from_millis(6_250)));
    }
}
