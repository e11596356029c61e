//! Remembers what auth has confirmed of tokens, for as long as the gateway holds a lease.
//!
//! * I1. A caller is returned only while the gateway holds a lease ([`super::lease`]), which every change of a
//!   credential waits out. So after a gateway was stopped, it asks auth first.
//! * I2. What is remembered was asked after the last clearing. A clearing follows each message of auth and each
//!   renewal that shows another revision, and each gap between two leases. So it was asked after the commit of
//!   the revision that the gateway knows, and a message with that revision clears nothing.
//! * I3. Only a login or a key is remembered, for at most [`MAX_AGE`], and none that ends soon. So it never
//!   outlives its end, and auth learns of each key in use.
//! * I4. The subject of a token outlives a clearing: a token never changes its user. It selects the counter of
//!   the rate limit and nothing else. Only a token that auth has accepted is counted under its user, so guessed
//!   and revoked tokens cannot use up another user's limit.
//! * I5. The memory is bounded and holds no token. It has two generations of digests; when the newer one is
//!   full, the older one is dropped.
//!
//! Every time is one of [`super::lease::boot_time`], which the caller passes.

use std::collections::HashMap;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::identity::{CREDENTIAL_LEASE, Principal, Scope};
use agentbox_contracts::ids::UserId;
use chrono::{TimeDelta, Utc};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

/// Tokens of one generation.
const GENERATION: usize = 5_000;
/// A principal with permissions on more environments is not remembered, so that memory is bounded.
const MAX_ENVIRONMENTS: usize = 8;
/// How long a caller is remembered. Auth records the last use of a key when it is asked.
const MAX_AGE: Duration = Duration::from_secs(10);
/// A credential that ends sooner is not remembered: [`MAX_AGE`], and a minute by which the clocks of the
/// gateway and of Postgres may differ.
const ENDS_SOON: TimeDelta = TimeDelta::seconds(70);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    User(UserId),
    /// Auth refused the token.
    Rejected,
}

/// What is known of a token.
#[derive(Debug)]
pub(crate) struct Known {
    pub subject: Option<Subject>,
    /// The caller, if auth need not be asked.
    pub caller: Option<Principal>,
    /// For [`ConfirmedTokens::insert`], if auth is asked now.
    pub asked: Asked,
}

/// The moment before auth is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    clearings: u64,
    at: Duration,
}

struct Entry {
    subject: Subject,
    confirmed: Option<Confirmed>,
}

struct Confirmed {
    caller: Principal,
    clearings: u64,
    until: Duration,
}

type Generation = HashMap<[u8; 32], Entry>;

#[derive(Default)]
struct State {
    current: Generation,
    previous: Generation,
    /// How often everything confirmed was cleared. What was confirmed before the last time is not used.
    clearings: u64,
    /// The revision of what is confirmed. `None`: the gateway has held no lease yet.
    revision: Option<i64>,
    lease_ends: Duration,
}

#[derive(Default)]
pub(crate) struct ConfirmedTokens {
    state: Mutex<State>,
    /// Wakes the task that renews the lease.
    renewal_due: Notify,
}

fn digest(token: &Secret) -> [u8; 32] {
    Sha256::digest(&token.0).into()
}

/// Whether a caller may be remembered.
fn is_lasting(caller: &Principal) -> bool {
    let is_small = match &caller.scope {
        Scope::Full => true,
        Scope::Environments(environments) => environments.len() <= MAX_ENVIRONMENTS,
    };
    let ends_soon = caller
        .expires_at
        .is_some_and(|end| end - Utc::now() < ENDS_SOON);
    is_small && !ends_soon
}

impl State {
    fn holds_lease(&self, now: Duration) -> bool {
        now < self.lease_ends
    }

    fn is_renewal_due(&self, now: Duration) -> bool {
        self.lease_ends.saturating_sub(now) < CREDENTIAL_LEASE / 2
    }

    fn clear(&mut self) {
        self.clearings += 1;
    }
}

impl ConfirmedTokens {
    /// Returns what is known of a token, and asks for a renewal of the lease if it is due.
    pub(crate) fn get(&self, token: &Secret, now: Duration) -> Known {
        let key = digest(token);
        let state = self.state.lock();
        let entry = state.current.get(&key).or_else(|| state.previous.get(&key));
        let confirmed = entry.and_then(|entry| entry.confirmed.as_ref());
        let caller = confirmed.filter(|confirmed| {
            state.holds_lease(now)
                && confirmed.clearings == state.clearings
                && now < confirmed.until
        });
        let known = Known {
            subject: entry.map(|entry| entry.subject.clone()),
            caller: caller.map(|confirmed| confirmed.caller.clone()),
            asked: Asked {
                clearings: state.clearings,
                at: now,
            },
        };
        if state.is_renewal_due(now) {
            self.renewal_due.notify_one();
        }
        known
    }

    /// Remembers auth's answer to a question of the moment `asked`.
    pub(crate) fn insert(&self, token: &Secret, answer: &Result<Principal, Error>, asked: Asked) {
        let subject = match answer {
            Ok(caller) => Subject::User(caller.user.clone()),
            Err(error) if error.code == ErrorCode::Unauthorized => Subject::Rejected,
            Err(_) => return,
        };
        let lasting = answer.as_ref().ok().filter(|caller| is_lasting(caller));
        let key = digest(token);
        let mut state = self.state.lock();
        let confirmed = lasting
            .filter(|_| asked.clearings == state.clearings)
            .zip(asked.at.checked_add(MAX_AGE))
            .map(|(caller, until)| Confirmed {
                caller: caller.clone(),
                clearings: asked.clearings,
                until,
            });
        let known = state.current.get(&key);
        if confirmed.is_none() && known.is_some_and(|known| known.subject == subject) {
            return;
        }
        if known.is_none() && state.current.len() >= GENERATION {
            state.previous = std::mem::take(&mut state.current);
        }
        state.current.insert(key, Entry { subject, confirmed });
    }

    /// Forgets what was confirmed before, unless that was asked after the commit of this revision.
    pub(crate) fn forget(&self, revision: i64) {
        let mut state = self.state.lock();
        if state.revision != Some(revision) {
            state.clear();
            state.revision = Some(revision);
        }
    }

    /// Records that auth has renewed the lease, with the revision that auth has read after it was asked at
    /// `asked_at`.
    pub(crate) fn renew(&self, revision: i64, asked_at: Duration, now: Duration) {
        let mut state = self.state.lock();
        if state.revision != Some(revision) || !state.holds_lease(now) {
            state.clear();
        }
        state.revision = Some(revision);
        // Without a clock there is no lease.
        state.lease_ends = asked_at.checked_add(CREDENTIAL_LEASE).unwrap_or_default();
    }

    /// Ends the lease: auth is asked from now on.
    pub(crate) fn release(&self) {
        self.state.lock().lease_ends = Duration::ZERO;
    }

    /// Whether less than half of the lease is left.
    pub(crate) fn is_renewal_due(&self, now: Duration) -> bool {
        self.state.lock().is_renewal_due(now)
    }

    /// Resolves when a request has found that the lease is due for its renewal.
    pub(crate) async fn wait_for_renewal(&self) {
        self.renewal_due.notified().await;
    }
}

#[cfg(test)]
mod tests;
