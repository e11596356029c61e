//! The guide's rate limits: strict windows of one minute, exact across replicas.
//!
//! Each window is a counter on the bus whose increment answers the total, so deciding
//! costs one round trip. When the bus does not answer, the request is let through and
//! counted as such: nothing that it could do works without the bus either, and its own
//! call will answer 503.

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::subjects;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use chrono::Utc;

use crate::config::Config;
use crate::metrics;
use crate::state::Gateway;

const WINDOW_S: u64 = 60;
const DEADLINE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Category {
    Auth,
    Create,
    Exec,
    Other,
}

impl Category {
    fn word(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Create => "create",
            Self::Exec => "exec",
            Self::Other => "other",
        }
    }

    fn limit(self, config: &Config) -> u64 {
        match self {
            Self::Auth => config.rate_limit_auth,
            Self::Create => config.rate_limit_create,
            Self::Exec => config.rate_limit_exec,
            Self::Other => config.rate_limit_other,
        }
    }
}

/// Where a caller stands in its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub limit: u64,
    pub used: u64,
    /// When the window ends, Unix seconds.
    pub reset: u64,
}

impl Standing {
    fn at(limit: u64, used: u64, now: u64) -> Self {
        Self {
            limit,
            used,
            reset: (now / WINDOW_S + 1) * WINDOW_S,
        }
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let remaining = self.limit.saturating_sub(self.used);
        for (name, value) in [
            ("x-ratelimit-limit", self.limit),
            ("x-ratelimit-remaining", remaining),
            ("x-ratelimit-reset", self.reset),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
        }
    }

    /// # Errors
    /// [`ErrorCode::RateLimited`] when this request was one too many.
    pub(crate) fn check(&self, category: Category, now: u64) -> Result<(), Error> {
        if self.used <= self.limit {
            return Ok(());
        }
        metrics::rate_limited(category.word());
        let wait = self.reset.saturating_sub(now).max(1);
        let mut error = Error::new(
            ErrorCode::RateLimited,
            format!(
                "more than {} requests of the kind `{}` a minute; try again in {wait} s",
                self.limit,
                category.word()
            ),
        );
        error.retry_after_s = u32::try_from(wait).ok();
        Err(error)
    }
}

pub(crate) fn now_unix_s() -> u64 {
    u64::try_from(Utc::now().timestamp()).unwrap_or(0)
}

/// Counts one request of `principal` (an id, or [`address_token`]).
pub(crate) async fn count(gateway: &Gateway, principal: &str, category: Category) -> Standing {
    let now = now_unix_s();
    let limit = category.limit(&gateway.config);
    let subject = subjects::limit(principal, category.word(), now / WINDOW_S);
    match gateway.bus.increment(subject, 1, DEADLINE).await {
        Ok(used) => Standing::at(limit, used, now),
        Err(error) => {
            metrics::rate_limit_unknown();
            tracing::debug!(%error, "a request was not counted");
            Standing::at(limit, 0, now)
        }
    }
}

/// Any text as one subject token.
pub(crate) fn token(text: &str) -> String {
    use base64::Engine as _;
    let short: String = text.chars().take(128).collect();
    format!(
        "t-{}",
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(short)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_passes_and_the_next_does_not() {
        let at = |used| Standing::at(10, used, 125);
        assert_eq!(at(1).reset, 180);
        assert!(at(10).check(Category::Auth, 125).is_ok());
        let refused = at(11).check(Category::Auth, 125).unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert_eq!(refused.retry_after_s, Some(55));
    }

    #[test]
    fn the_headers_are_the_guides() {
        let mut headers = HeaderMap::new();
        Standing::at(100, 5, 0).write(&mut headers);
        assert_eq!(headers["x-ratelimit-limit"], "100");
        assert_eq!(headers["x-ratelimit-remaining"], "95");
        assert_eq!(headers["x-ratelimit-reset"], "60");
    }

    #[test]
    fn any_text_becomes_one_subject_token() {
        for text in ["2001:db8::1", "a.b > *", ""] {
            let token = token(text);
            assert!(
                token
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
                "{token}"
            );
        }
    }
}
