//! The documented rate limits: fixed windows of one minute, exact across replicas.
//!
//! Each window of each caller is a counter on the bus, and an increment returns its total.
//! One limit costs one round trip, made while auth is asked for the caller.
//!
//! * I1. In one window exactly as many requests of a caller pass as its limit allows, on all
//!   replicas together: the total that the increment returned decides.
//! * I2. Every answer carries the state of its caller's limit.
//! * I3. While the bus cannot count, each replica counts for itself ([`local`]). The limit then
//!   holds per replica: password guessing stays bounded, and no caller is refused because a
//!   counter failed. The bus is asked again after a second, so an outage costs one deadline a
//!   second, not one a request.

pub(crate) mod flood;
pub(crate) mod local;
pub(crate) mod window;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::UserId;
use agentbox_contracts::limits::UserLimits;
use agentbox_contracts::subjects;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::edge::client_address::ClientAddress;
use crate::metrics;
use local::LocalWindows;
pub(crate) use window::RateLimitStatus;
use window::WINDOW_S;

/// How long the bus may take to count. Auth is asked at the same time and may take longer, so
/// a shorter deadline saves nothing; on an overloaded machine it would make limits inexact.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long the bus is not asked after it failed to count.
const PAUSE_MS: i64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Category {
    /// Requests that check a password.
    Auth,
    /// Logins of one username that fail, whatever their address.
    FailedLogin,
    Create,
    Exec,
    /// File operations.
    Files,
    Other,
    /// Probes of this process: never limited, and never waiting for the bus.
    Uncounted,
}

impl Category {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::FailedLogin => "failed_login",
            Self::Create => "create",
            Self::Exec => "exec",
            Self::Files => "files",
            Self::Other => "other",
            Self::Uncounted => "uncounted",
        }
    }

    /// The limit of this category that an administrator has set for a user.
    pub(crate) const fn limit_of(self, limits: &UserLimits) -> Option<u64> {
        match self {
            Self::Create => limits.rates.create,
            Self::Exec => limits.rates.exec,
            Self::Files => limits.rates.files,
            Self::Other => limits.rates.other,
            Self::Auth | Self::FailedLogin | Self::Uncounted => None,
        }
    }
}

/// Requests a minute of one caller, by category.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub auth: u64,
    pub failed_login: u64,
    pub create: u64,
    pub exec: u64,
    pub files: u64,
    pub other: u64,
}

impl Limits {
    const fn get(&self, category: Category) -> u64 {
        match category {
            Category::Auth => self.auth,
            Category::FailedLogin => self.failed_login,
            Category::Create => self.create,
            Category::Exec => self.exec,
            Category::Files => self.files,
            Category::Other | Category::Uncounted => self.other,
        }
    }
}

impl From<&Config> for Limits {
    fn from(config: &Config) -> Self {
        Self {
            auth: config.rate_limit_auth,
            failed_login: config.rate_limit_failed_login,
            create: config.rate_limit_create,
            exec: config.rate_limit_exec,
            files: config.rate_limit_files,
            other: config.rate_limit_other,
        }
    }
}

/// The key of a caller's counters: one token of a NATS subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallerKey(String);

impl CallerKey {
    pub(crate) fn user(user: &UserId) -> Self {
        Self(user.to_string())
    }

    pub(crate) fn address(client: ClientAddress) -> Self {
        Self(format!(
            "addr-{}",
            URL_SAFE_NO_PAD.encode(client.network().to_string())
        ))
    }

    /// The username of a login, which need not exist. It is hashed, because it may be text of any
    /// length, and may be a password that was typed into the wrong field.
    pub(crate) fn username(name: &str) -> Self {
        let digest = Sha256::digest(name.trim().to_lowercase());
        Self(format!("name-{}", URL_SAFE_NO_PAD.encode(&digest[..16])))
    }
}

pub(crate) struct Limiter {
    bus: Bus,
    limits: Limits,
    local: LocalWindows,
    /// Unix milliseconds until which the bus is not asked.
    paused_until: AtomicI64,
}

impl Limiter {
    pub(crate) fn new(bus: Bus, limits: Limits) -> Self {
        Self {
            bus,
            limits,
            local: LocalWindows::default(),
            paused_until: AtomicI64::new(0),
        }
    }

    /// Counts one request and returns the state of its caller's limit.
    pub(crate) async fn count(&self, caller: &CallerKey, category: Category) -> RateLimitStatus {
        let now = Utc::now();
        let second = u64::try_from(now.timestamp()).unwrap_or(0);
        let limit = self.limits.get(category);
        if category == Category::Uncounted {
            return RateLimitStatus::at(category, limit, 0, second);
        }
        let window = second / WINDOW_S;
        let key = subjects::limit(&caller.0, category.as_str(), window);
        let used = match self.add(key.clone(), 1, now.timestamp_millis()).await {
            Some(used) => used,
            None => self.local.count(key, window),
        };
        RateLimitStatus::at(category, limit, used, second)
    }

    /// Takes back a request that was counted as `status`, because it was not of that category.
    pub(crate) async fn uncount(&self, caller: &CallerKey, status: RateLimitStatus) {
        let window = status.window();
        let key = subjects::limit(&caller.0, status.category().as_str(), window);
        let now_ms = Utc::now().timestamp_millis();
        if self.add(key.clone(), -1, now_ms).await.is_none() {
            self.local.uncount(&key, window);
        }
    }

    /// Adds to a counter and returns its total on the bus; `None` when the bus cannot count.
    async fn add(&self, key: String, by: i64, now_ms: i64) -> Option<u64> {
        if now_ms < self.paused_until.load(Ordering::Relaxed) {
            metrics::counted_locally();
            return None;
        }
        match self.bus.increment(key, by, DEADLINE).await {
            Ok(used) => Some(used),
            Err(error) => {
                self.paused_until
                    .store(now_ms + PAUSE_MS, Ordering::Relaxed);
                metrics::counted_locally();
                tracing::warn!(error = %ErrorChain(&error), "the bus did not count a request; this replica counts locally");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_caller_key_is_one_nats_token() {
        let address = |text: &str| CallerKey::address(ClientAddress(text.parse().unwrap()));
        let long = "x".repeat(10_000);
        for key in [
            address("2001:db8::1"),
            address("192.0.2.1"),
            CallerKey::username("a.b > *"),
            CallerKey::username(&long),
            CallerKey::username(""),
            CallerKey::user(&UserId::random()),
        ] {
            let CallerKey(text) = &key;
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            assert!(text.bytes().all(is_plain) && text.len() < 100, "{text}");
        }
    }

    #[test]
    fn username_is_compared_without_case_and_spaces() {
        assert_eq!(CallerKey::username("Alice "), CallerKey::username("alice"));
        assert_ne!(CallerKey::username("alice"), CallerKey::username("alicf"));
    }
}
