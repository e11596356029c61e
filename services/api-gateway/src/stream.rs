//! What long-lived answers share: they end with their credential, and when the gateway
//! stops.
//!
//! * I1. A stream whose credential has died sends nothing more from [`STALE`] on, and ends
//!   at the latest then, if its client reads.
//! * I2. That auth cannot be reached is not a credential's end; after [`PATIENCE`] without
//!   a word of auth it ends all the same.

pub(crate) mod sse;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use chrono::Utc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::authorize::unauthorized;
use crate::principal::still_good;
use crate::state::Gateway;

/// How often the credential of a running stream is looked at again.
const RECHECK: Duration = Duration::from_secs(2);
/// A stream that was not polled for so long (its client does not read) asks before it
/// sends more.
const STALE: Duration = Duration::from_secs(4);
/// How long a stream goes on without a word of auth.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a stream ends before its source does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The credential is no longer good, or nobody can say so.
    Credential(Error),
    /// The gateway stops: the client connects again, to another replica.
    Stopping,
}

type Asking = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Watches over one stream's credential. What it waits for goes on when [`Self::ended`]
/// is dropped and called again.
pub(crate) struct Watch {
    gateway: Gateway,
    principal: Principal,
    stop: CancellationToken,
    asking: Option<Asking>,
    asked: Instant,
    good: Instant,
    expires: Option<Instant>,
}

impl Watch {
    /// `principal` was good a moment ago; `stop` is when a gateway that stops ends the stream.
    pub(crate) fn new(gateway: Gateway, principal: Principal, stop: CancellationToken) -> Self {
        let now = Instant::now();
        let expires = principal.expires_at.map(|at| {
            let left = (at - Utc::now()).to_std().unwrap_or_default();
            // An instant too far away to be represented is no limit of this stream.
            now.checked_add(left)
                .unwrap_or(now + Duration::from_secs(86_400))
        });
        Self {
            gateway,
            principal,
            stop,
            asking: None,
            asked: now,
            good: now,
            expires,
        }
    }

    /// Resolves when the stream must end.
    pub(crate) async fn ended(&mut self) -> Ended {
        loop {
            if let Some(ended) = self.ask().await {
                return ended;
            }
        }
    }

    /// Before something is sent: asks if nobody has for too long.
    pub(crate) async fn allows(&mut self) -> Result<(), Ended> {
        if self.good.elapsed() < STALE {
            return Ok(());
        }
        match self.ask().await {
            Some(ended) => Err(ended),
            None => Ok(()),
        }
    }

    /// Waits for the next time to ask, and asks. `None`: nothing speaks against it.
    async fn ask(&mut self) -> Option<Ended> {
        if self.asking.is_none() {
            let next = self.asked + RECHECK;
            let wake = self.expires.map_or(next, |expires| expires.min(next));
            tokio::select! {
                () = self.stop.cancelled() => return Some(Ended::Stopping),
                () = sleep_until(wake) => {}
            }
        }
        let (gateway, principal) = (&self.gateway, &self.principal);
        let asking = self.asking.get_or_insert_with(|| {
            let (gateway, principal) = (gateway.clone(), principal.clone());
            Box::pin(async move { still_good(&gateway, &principal).await })
        });
        let outcome = tokio::select! {
            () = self.stop.cancelled() => return Some(Ended::Stopping),
            outcome = asking => outcome,
        };
        self.asking = None;
        self.asked = Instant::now();
        let has_expired = self.expires.is_some_and(|expires| expires <= self.asked);
        if outcome.is_ok() && !has_expired {
            self.good = self.asked;
        }
        judge(outcome, has_expired, self.good.elapsed()).map(Ended::Credential)
    }
}

/// What auth's answer means for the stream.
fn judge(outcome: Result<(), Error>, has_expired: bool, silent: Duration) -> Option<Error> {
    match outcome {
        Err(error) if error.code == ErrorCode::Unauthorized => Some(error),
        _ if has_expired => Some(unauthorized("the credential has expired")),
        Ok(()) => None,
        Err(error) if silent >= PATIENCE => Some(error),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bad_credential_or_a_long_silence_ends_a_stream() {
        let down = || Err(Error::new(ErrorCode::Unavailable, "down"));
        let dead = || Err(unauthorized("revoked"));
        let code = |outcome, expired, silent| {
            judge(outcome, expired, Duration::from_secs(silent)).map(|error| error.code)
        };
        assert_eq!(code(Ok(()), false, 0), None);
        assert_eq!(code(dead(), false, 0), Some(ErrorCode::Unauthorized));
        assert_eq!(code(Ok(()), true, 0), Some(ErrorCode::Unauthorized));
        assert_eq!(code(down(), true, 0), Some(ErrorCode::Unauthorized));
        assert_eq!(code(down(), false, 29), None);
        assert_eq!(code(down(), false, 30), Some(ErrorCode::Unavailable));
    }
}
