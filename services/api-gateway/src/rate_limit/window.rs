//! A fixed window of one minute, and how much of its limit a caller has used. Pure.

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::Category;
use crate::metrics;

/// The length of a window, in seconds. Windows begin at multiples of it since the Unix epoch, so
/// they are the same on every replica.
pub(crate) const WINDOW_S: u64 = 60;

/// The longest [`RateLimitStatus::delay`], in milliseconds.
const MAX_DELAY_MS: u64 = 3_000;
/// The part of a limit up to which there is no delay.
const UNDELAYED_PART: u64 = 10;

/// Writes the `X-RateLimit-*` headers: the limit of the window, the requests left in it, and
/// its end in Unix seconds.
pub(crate) fn write_headers(headers: &mut HeaderMap, limit: u64, remaining: u64, reset: u64) {
    for (name, value) in [
        ("x-ratelimit-limit", limit),
        ("x-ratelimit-remaining", remaining),
        ("x-ratelimit-reset", reset),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
}

/// The state of a caller's limit after one request was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateLimitStatus {
    category: Category,
    limit: u64,
    /// Requests in the window, this one included.
    used: u64,
    /// When the window ends, Unix seconds.
    reset: u64,
    /// Seconds from the request to `reset`.
    wait: u64,
}

impl RateLimitStatus {
    /// The state at `now`, in Unix seconds.
    pub(crate) const fn at(category: Category, limit: u64, used: u64, now: u64) -> Self {
        let reset = (now / WINDOW_S + 1) * WINDOW_S;
        Self {
            category,
            limit,
            used,
            reset,
            wait: reset - now,
        }
    }

    /// The same count with another limit, if there is one.
    #[must_use]
    pub(crate) fn with_limit(self, limit: Option<u64>) -> Self {
        Self {
            limit: limit.unwrap_or(self.limit),
            ..self
        }
    }

    /// Of two limits that one request was counted against, the one with fewer requests left.
    #[must_use]
    pub(crate) fn tighter(self, other: Self) -> Self {
        if other.remaining() < self.remaining() || other.used > other.limit {
            other
        } else {
            self
        }
    }

    const fn remaining(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    pub(super) const fn category(&self) -> Category {
        self.category
    }

    /// The window in which the request was counted.
    pub(super) const fn window(&self) -> u64 {
        self.reset / WINDOW_S - 1
    }

    /// How long a request waits that is slowed down before it is refused: not at all in the first
    /// tenth of the limit, then longer with each request, up to [`MAX_DELAY_MS`] at the limit.
    pub(crate) fn delay(&self) -> Duration {
        let undelayed = self.limit / UNDELAYED_PART;
        let above = self.used.min(self.limit).saturating_sub(undelayed);
        let range = (self.limit - undelayed).max(1);
        Duration::from_millis(MAX_DELAY_MS.saturating_mul(above) / range)
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        write_headers(headers, self.limit, self.remaining(), self.reset);
    }

    /// # Errors
    /// [`ErrorCode::RateLimited`] when this request exceeds the limit.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.used <= self.limit {
            return Ok(());
        }
        metrics::rate_limited(self.category.as_str());
        let mut error = Error::new(
            ErrorCode::RateLimited,
            format!(
                "more than {} requests of the kind `{}` in a minute; try again in {} s",
                self.limit,
                self.category.as_str(),
                self.wait
            ),
        );
        error.retry_after_s = u32::try_from(self.wait).ok();
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_above_the_limit_is_refused() {
        let at = |used| RateLimitStatus::at(Category::Auth, 10, used, 125);
        assert!(at(1).check().is_ok());
        assert!(at(10).check().is_ok());
        let refused = at(11).check().unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert_eq!(refused.retry_after_s, Some(55));
    }

    #[test]
    fn delay_grows_from_a_tenth_of_the_limit_to_the_limit() {
        for (limit, used, expected) in [
            (300, 1, 0),
            (300, 30, 0),
            (300, 31, 11),
            (300, 165, 1_500),
            (300, 300, 3_000),
            (300, 900, 3_000),
            (1, 1, 3_000),
            (0, 1, 0),
        ] {
            let status = RateLimitStatus::at(Category::FailedLogin, limit, used, 125);
            assert_eq!(status.delay(), Duration::from_millis(expected), "{used}");
            assert_eq!(status.window(), 2);
        }
    }

    #[test]
    fn window_ends_at_the_next_whole_minute() {
        for (now, reset, wait) in [(0, 60, 60), (59, 60, 1), (60, 120, 60), (61, 120, 59)] {
            let rate_limit = RateLimitStatus::at(Category::Other, 1, 1, now);
            assert_eq!(
                (rate_limit.reset, rate_limit.wait),
                (reset, wait),
                "at {now}"
            );
        }
    }

    #[test]
    fn headers_have_limit_remaining_and_reset() {
        let mut headers = HeaderMap::new();
        RateLimitStatus::at(Category::Exec, 100, 5, 1_706_011_199).write(&mut headers);
        assert_eq!(headers["x-ratelimit-limit"], "100");
        assert_eq!(headers["x-ratelimit-remaining"], "95");
        assert_eq!(headers["x-ratelimit-reset"], "1706011200");
        RateLimitStatus::at(Category::Exec, 100, 105, 0).write(&mut headers);
        assert_eq!(headers["x-ratelimit-remaining"], "0");
    }

    #[test]
    fn limit_of_the_caller_replaces_that_of_the_deployment() {
        let counted = RateLimitStatus::at(Category::Exec, 10, 11, 0);
        assert!(counted.with_limit(None).check().is_err());
        assert!(counted.with_limit(Some(11)).check().is_ok());
        let message = counted.with_limit(Some(3)).check().unwrap_err().message;
        assert!(message.starts_with("more than 3 requests"), "{message}");
    }

    #[test]
    fn tighter_of_two_limits_is_reported() {
        let used = |used| RateLimitStatus::at(Category::Auth, 10, used, 0);
        assert_eq!(used(3).tighter(used(7)), used(7));
        assert_eq!(used(7).tighter(used(3)), used(7));
        assert_eq!(used(10).tighter(used(11)), used(11));
        assert_eq!(used(12).tighter(used(3)), used(12));
    }
}
