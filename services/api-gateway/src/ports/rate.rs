//! The bytes per second that the connections of one user to ports may carry.

use std::collections::HashMap;
use std::time::Duration;

use agentbox_contracts::ids::UserId;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// The bytes of this time pass at once after a pause.
const BURST: Duration = Duration::from_secs(1);
/// Users in memory above which those without traffic are forgotten.
const MAX_IDLE: usize = 1_024;

/// Slows down each user's connections, all together, to one rate.
pub(crate) struct ByteRates {
    bytes_per_second: u64,
    /// When the bytes that each user was given so far have passed, at the rate.
    passed_at: Mutex<HashMap<UserId, Instant>>,
}

impl ByteRates {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            passed_at: Mutex::new(HashMap::new()),
        }
    }

    /// Returns when `bytes` of `user` may pass.
    pub(super) async fn pass(&self, user: &UserId, bytes: usize) {
        let now = Instant::now();
        let passed_at = self.reserve(user, bytes, now);
        if passed_at > now {
            sleep_until(passed_at).await;
        }
    }

    fn reserve(&self, user: &UserId, bytes: usize, now: Instant) -> Instant {
        let nanos = u128::try_from(bytes)
            .unwrap_or(u128::MAX)
            .saturating_mul(1_000_000_000)
            / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let mut users = self.passed_at.lock();
        if users.len() >= MAX_IDLE && !users.contains_key(user) {
            users.retain(|_, passed_at| *passed_at > earliest);
        }
        let passed_at = users.entry(user.clone()).or_insert(earliest);
        *passed_at = (*passed_at).max(earliest) + takes;
        *passed_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_above_the_rate_wait_for_their_user_only() {
        let rates = ByteRates::new(1_000);
        let (first, second) = (UserId::random(), UserId::random());
        let now = Instant::now() + Duration::from_secs(60);
        let wait = |user: &UserId, bytes, now: Instant| {
            rates
                .reserve(user, bytes, now)
                .saturating_duration_since(now)
        };
        // What a second carries passes at once.
        assert_eq!(wait(&first, 600, now), Duration::ZERO);
        assert_eq!(wait(&first, 400, now), Duration::ZERO);
        assert_eq!(wait(&first, 500, now), Duration::from_millis(500));
        assert_eq!(wait(&second, 1_000, now), Duration::ZERO);
        let later = now + Duration::from_secs(10);
        assert_eq!(wait(&first, 1_000, later), Duration::ZERO);
        assert_eq!(wait(&first, 1_000, later), Duration::from_secs(1));
    }

    #[test]
    fn users_without_traffic_are_forgotten() {
        let rates = ByteRates::new(1_000);
        let now = Instant::now() + Duration::from_secs(60);
        for _ in 0..MAX_IDLE {
            rates.reserve(&UserId::random(), 1, now);
        }
        let later = now + Duration::from_secs(10);
        rates.reserve(&UserId::random(), 1, later);
        assert_eq!(rates.passed_at.lock().len(), 1);
    }
}
