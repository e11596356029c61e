//! The rules that long-lived answers share: a stream ends when its credential ends, when its
//! caller loses the right to it, and when the gateway stops.
//!
//! * I1. A stream carries data only while auth has confirmed its credential and right within
//!   [`STALE`]. A stream whose credential or right has ended closes by then if its client reads.
//! * I2. An unreachable auth pauses a stream, which continues when auth confirms it.
//!   [`AUTH_OUTAGE_LIMIT`] without an answer ends it.

pub(crate) mod sse;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use agentbox_contracts::environment::Visibility;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{Principal, TicketResource};
use agentbox_contracts::ids::{EnvironmentId, PreviewId, UserId};
use chrono::Utc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::authorize::{Action, Target, authorize, unauthorized, visibility};
use crate::lookup::EnvironmentLocation;
use crate::previews;
use crate::principal::revalidate;
use crate::state::Gateway;

/// How often the credential of an open stream is checked.
const RECHECK_INTERVAL: Duration = Duration::from_secs(2);
/// A stream whose last confirmed check is older waits for the next one before it carries more. This
/// happens when auth does not answer, and when the client did not read for a while.
const STALE: Duration = Duration::from_secs(4);
/// How long a stream stays open, paused for most of the time, while auth does not answer.
const AUTH_OUTAGE_LIMIT: Duration = Duration::from_secs(30);

/// Why a stream ends before its source does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The caller would be refused now, or auth has not answered for too long.
    Refused(Error),
    /// The gateway stops; the client should reconnect, to another replica.
    Stopping,
}

/// The right that a stream's caller needs for as long as the stream is open.
#[derive(Clone, Debug)]
pub(crate) enum StreamGrant {
    /// An action on an environment.
    Environment {
        action: Action,
        id: EnvironmentId,
        owner: UserId,
        /// The execution or the path that a ticket for the action is bound to.
        resource: Option<TicketResource>,
    },
    /// The port of a preview, as long as the preview exists.
    Preview {
        preview: PreviewId,
        id: EnvironmentId,
        owner: UserId,
    },
    /// The environments that were visible when the stream began. A change of them ends the stream.
    Listing(Visibility),
}

impl StreamGrant {
    pub(crate) fn environment(action: Action, location: &EnvironmentLocation) -> Self {
        Self::Environment {
            action,
            id: location.id.clone(),
            owner: location.owner.clone(),
            resource: location.resource.clone(),
        }
    }

    /// # Errors
    /// The error that a new request would get.
    fn check(&self, principal: &Principal) -> Result<(), Error> {
        match self {
            Self::Environment {
                action,
                id,
                owner,
                resource,
            } => {
                let resource = resource.as_ref();
                let target = Target {
                    id,
                    owner,
                    resource,
                };
                authorize(Some(principal), *action, Some(target))
            }
            Self::Preview { id, owner, .. } => {
                let target = Target {
                    id,
                    owner,
                    resource: None,
                };
                authorize(Some(principal), Action::UsePort, Some(target))
            }
            Self::Listing(visible) if visibility(principal) == *visible => Ok(()),
            Self::Listing(_) => Err(Error::new(
                ErrorCode::Forbidden,
                "the environments that the caller may see have changed; connect again",
            )),
        }
    }
}

/// Asks auth for the caller, and checks its grant.
async fn confirm(gateway: Gateway, principal: Principal, grant: StreamGrant) -> Result<(), Error> {
    let current = match &grant {
        StreamGrant::Preview { preview, .. } => previews::revalidate(&gateway, preview).await?,
        StreamGrant::Environment { .. } | StreamGrant::Listing(_) => {
            revalidate(&gateway, &principal).await?
        }
    };
    grant.check(&current)
}

type Check = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Watches the credential and the grant of one stream. A check that is in flight continues when
/// [`Self::ended`] is dropped and called again.
pub(crate) struct AccessWatch {
    gateway: Gateway,
    principal: Principal,
    grant: StreamGrant,
    stop: CancellationToken,
    interval: Duration,
    in_flight: Option<Check>,
    last_checked: Instant,
    last_granted: Instant,
    expires: Option<Instant>,
}

impl AccessWatch {
    /// `principal` was just authenticated; `stop` ends the stream when the gateway stops.
    pub(crate) fn new(
        gateway: Gateway,
        principal: Principal,
        grant: StreamGrant,
        stop: CancellationToken,
    ) -> Self {
        let now = Instant::now();
        let expires = principal.expires_at.map(|at| {
            let left = (at - Utc::now()).to_std().unwrap_or_default();
            // An instant too far away to be represented does not limit this stream.
            now.checked_add(left)
                .unwrap_or(now + Duration::from_secs(86_400))
        });
        Self {
            gateway,
            principal,
            grant,
            stop,
            interval: RECHECK_INTERVAL,
            in_flight: None,
            last_checked: now,
            last_granted: now,
            expires,
        }
    }

    /// Checks as often as this, instead of every [`RECHECK_INTERVAL`].
    pub(crate) fn checked_every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// Resolves when the stream must end.
    pub(crate) async fn ended(&mut self) -> StreamEnd {
        loop {
            if let Some(end) = self.check().await {
                return end;
            }
        }
    }

    /// Resolves when the stream must end, or (`None`) when it must pause until [`Self::allows`]
    /// returns, because the last confirmed check is older than [`STALE`].
    pub(crate) async fn lapsed(&mut self) -> Option<StreamEnd> {
        loop {
            let stale_at = self.last_granted + STALE;
            tokio::select! {
                biased;
                end = self.check() => if end.is_some() { return end },
                () = sleep_until(stale_at) => return None,
            }
        }
    }

    /// Returns when something may be sent: at once, or after the next confirmed check if the last
    /// one is older than [`STALE`].
    pub(crate) async fn allows(&mut self) -> Result<(), StreamEnd> {
        while self.last_granted.elapsed() >= STALE {
            if let Some(end) = self.check().await {
                return Err(end);
            }
        }
        Ok(())
    }

    /// Waits until the next check is due, makes it, and returns `None` if the stream may continue.
    async fn check(&mut self) -> Option<StreamEnd> {
        if self.in_flight.is_none() {
            let due = self.last_checked + self.interval;
            let wake = self.expires.map_or(due, |expires| expires.min(due));
            tokio::select! {
                () = self.stop.cancelled() => return Some(StreamEnd::Stopping),
                () = sleep_until(wake) => {}
            }
        }
        let (gateway, principal, grant) = (&self.gateway, &self.principal, &self.grant);
        let check = self.in_flight.get_or_insert_with(|| {
            Box::pin(confirm(gateway.clone(), principal.clone(), grant.clone()))
        });
        let outcome = tokio::select! {
            () = self.stop.cancelled() => return Some(StreamEnd::Stopping),
            outcome = check => outcome,
        };
        self.in_flight = None;
        self.last_checked = Instant::now();
        let has_expired = self
            .expires
            .is_some_and(|expires| expires <= self.last_checked);
        if outcome.is_ok() && !has_expired {
            self.last_granted = self.last_checked;
        }
        refusal(outcome, has_expired, self.last_granted.elapsed()).map(StreamEnd::Refused)
    }
}

/// Whether a new request of the caller would be refused.
const fn is_refusal(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Unauthorized | ErrorCode::Forbidden | ErrorCode::NotFound
    )
}

/// Why the stream must end after a check; `None`: it continues. `unconfirmed` is the time since
/// auth last confirmed the grant.
fn refusal(outcome: Result<(), Error>, has_expired: bool, unconfirmed: Duration) -> Option<Error> {
    match outcome {
        Err(error) if is_refusal(error.code) => Some(error),
        _ if has_expired => Some(unauthorized("the credential has expired")),
        Ok(()) => None,
        Err(error) if unconfirmed >= AUTH_OUTAGE_LIMIT => Some(error),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_or_long_auth_outage_ends_a_stream() {
        let down = || Err(Error::new(ErrorCode::Unavailable, "down"));
        let revoked = || Err(unauthorized("revoked"));
        let code = |outcome, expired, unconfirmed| {
            refusal(outcome, expired, Duration::from_secs(unconfirmed)).map(|error| error.code)
        };
        assert_eq!(code(Ok(()), false, 0), None);
        assert_eq!(code(revoked(), false, 0), Some(ErrorCode::Unauthorized));
        let hidden = Err(Error::not_found("environment"));
        assert_eq!(code(hidden, false, 0), Some(ErrorCode::NotFound));
        assert_eq!(code(Ok(()), true, 0), Some(ErrorCode::Unauthorized));
        assert_eq!(code(down(), true, 0), Some(ErrorCode::Unauthorized));
        assert_eq!(code(down(), false, 29), None);
        assert_eq!(code(down(), false, 30), Some(ErrorCode::Unavailable));
    }
}
