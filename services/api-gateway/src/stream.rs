//! What long-lived answers share: they end with their credential, with their caller's
//! right to them, and when the gateway stops.
//!
//! * I1. A stream whose credential has died, or whose caller may not open it any more,
//!   sends nothing more from [`STALE`] on, and ends at the latest then, if its client reads.
//! * I2. That auth cannot be reached is not a credential's end; after [`PATIENCE`] without
//!   a word of auth it ends all the same.

pub(crate) mod sse;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use agentbox_contracts::environment::Visibility;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use chrono::Utc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::authorize::{Action, Target, authorize, unauthorized, visibility};
use crate::lookup::Place;
use crate::principal::again;
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
    /// Its caller would not be let in again, or nobody can say so.
    Refused(Error),
    /// The gateway stops: the client connects again, to another replica.
    Stopping,
}

/// What a stream's caller must be allowed for as long as it runs.
#[derive(Clone, Debug)]
pub(crate) enum Right {
    /// An action on an environment.
    On {
        action: Action,
        id: EnvironmentId,
        owner: UserId,
    },
    /// To be shown what its lists showed when the stream began.
    Listed(Visibility),
}

impl Right {
    pub(crate) fn on(action: Action, place: &Place) -> Self {
        Self::On {
            action,
            id: place.id.clone(),
            owner: place.owner.clone(),
        }
    }

    /// # Errors
    /// As a request of now would be answered.
    fn check(&self, principal: &Principal) -> Result<(), Error> {
        match self {
            Self::On { action, id, owner } => {
                authorize(Some(principal), *action, Some(Target { id, owner }))
            }
            Self::Listed(seen) if visibility(principal) == *seen => Ok(()),
            Self::Listed(_) => Err(Error::new(
                ErrorCode::Forbidden,
                "what the caller may see has changed; connect again",
            )),
        }
    }
}

type Asking = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Watches over one stream's credential and right. What it waits for goes on when [`Self::ended`]
/// is dropped and called again.
pub(crate) struct Watch {
    gateway: Gateway,
    principal: Principal,
    right: Right,
    stop: CancellationToken,
    asking: Option<Asking>,
    asked: Instant,
    good: Instant,
    expires: Option<Instant>,
}

impl Watch {
    /// `principal` was good a moment ago; `stop` is when a gateway that stops ends the stream.
    pub(crate) fn new(
        gateway: Gateway,
        principal: Principal,
        right: Right,
        stop: CancellationToken,
    ) -> Self {
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
            right,
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
        let (gateway, principal, right) = (&self.gateway, &self.principal, &self.right);
        let asking = self.asking.get_or_insert_with(|| {
            let (gateway, principal) = (gateway.clone(), principal.clone());
            let right = right.clone();
            Box::pin(async move { right.check(&again(&gateway, &principal).await?) })
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
        judge(outcome, has_expired, self.good.elapsed()).map(Ended::Refused)
    }
}

/// Whether it says that the caller would not be let in again.
const fn is_refusal(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Unauthorized | ErrorCode::Forbidden | ErrorCode::NotFound
    )
}

/// What auth's answer means for the stream.
fn judge(outcome: Result<(), Error>, has_expired: bool, silent: Duration) -> Option<Error> {
    match outcome {
        Err(error) if is_refusal(error.code) => Some(error),
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
    fn only_a_refusal_or_a_long_silence_ends_a_stream() {
        let down = || Err(Error::new(ErrorCode::Unavailable, "down"));
        let dead = || Err(unauthorized("revoked"));
        let code = |outcome, expired, silent| {
            judge(outcome, expired, Duration::from_secs(silent)).map(|error| error.code)
        };
        assert_eq!(code(Ok(()), false, 0), None);
        assert_eq!(code(dead(), false, 0), Some(ErrorCode::Unauthorized));
        let unseen = Err(Error::not_found("environment"));
        assert_eq!(code(unseen, false, 0), Some(ErrorCode::NotFound));
        assert_eq!(code(Ok(()), true, 0), Some(ErrorCode::Unauthorized));
        assert_eq!(code(down(), true, 0), Some(ErrorCode::Unauthorized));
        assert_eq!(code(down(), false, 29), None);
        assert_eq!(code(down(), false, 30), Some(ErrorCode::Unavailable));
    }
}
