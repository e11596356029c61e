//! Repeats of operations whose session broke although the environment may still run: its exec-proxy was
//! killed, or NATS was restarted.

use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::Status;
use agentbox_contracts::error::{Error, ErrorCode};
use tokio::time::{Instant, sleep};

use crate::box_loss;
use crate::lookup::{self, EnvironmentLocation};
use crate::state::Gateway;

/// How long a read is repeated that fails.
const READ_LIMIT: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The state of repeats, from the first failure to the next success.
pub(super) struct Retry {
    /// The operation succeeded before, so any failure of a part may be temporary. Otherwise only a
    /// broken session is: a part that cannot be reached is reported at once.
    has_begun: bool,
    since: Option<Instant>,
    pause: Duration,
}

impl Retry {
    pub(super) const fn new() -> Self {
        Self {
            has_begun: false,
            since: None,
            pause: FIRST_PAUSE,
        }
    }

    /// For an operation that has succeeded once.
    pub(super) const fn begun() -> Self {
        Self {
            has_begun: true,
            ..Self::new()
        }
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::begun();
    }

    /// Whether a failure with this code may pass.
    pub(super) fn is_temporary(&self, code: ErrorCode) -> bool {
        match code {
            ErrorCode::BoxLost => true,
            ErrorCode::Unavailable
            | ErrorCode::Timeout
            | ErrorCode::NotRunning
            | ErrorCode::EnvironmentEnded => self.has_begun || self.since.is_some(),
            _ => false,
        }
    }

    /// The pause before the next attempt after a failure with this code. `None`: a repeat cannot help, or
    /// attempts have failed for `limit`.
    fn next(&mut self, code: ErrorCode, limit: Duration) -> Option<Duration> {
        if !self.is_temporary(code) {
            return None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= limit {
            return None;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// `error`, if a repeat cannot help, or attempts have failed for `limit`.
    pub(super) async fn pause(&mut self, error: Error, limit: Duration) -> Result<(), Error> {
        let Some(pause) = self.next(error.code, limit) else {
            return Err(error);
        };
        tracing::debug!(error = %ErrorChain(&error), "an operation on an execution failed; it will be repeated");
        sleep(pause).await;
        Ok(())
    }

    /// Prepares the next attempt of an operation that only reads, and has failed. If the environment
    /// has just ended, which its route may not show yet, the next attempt reads the archive.
    ///
    /// # Errors
    /// `error`, if a repeat cannot help, or attempts have failed for [`READ_LIMIT`]; that the environment
    /// no longer exists.
    pub(super) async fn read_again(
        &mut self,
        gateway: &Gateway,
        location: &mut EnvironmentLocation,
        error: Error,
    ) -> Result<(), Error> {
        // Of an environment with another status the archive was read.
        if error.code == ErrorCode::NotRunning && location.status == Status::Running {
            match box_loss::reason(gateway, &location.id).await {
                Ok(Some(environment)) => {
                    *location = Arc::new(environment).into();
                    return Ok(());
                }
                Err(error) if error.code == ErrorCode::NotFound => return Err(error),
                // It runs as far as anyone knows.
                Ok(None) | Err(_) => {}
            }
        }
        self.pause(error, READ_LIMIT).await?;
        relocate(gateway, location).await
    }
}

/// Finds the environment again after a failure: the route mirror may be outdated. If the scheduler
/// cannot be reached, the location stays as it is.
///
/// # Errors
/// [`ErrorCode::NotFound`]
pub(super) async fn relocate(
    gateway: &Gateway,
    location: &mut EnvironmentLocation,
) -> Result<(), Error> {
    match lookup::read_location(gateway, location.id.clone()).await {
        Ok(found) => *location = found,
        Err(error) if error.code == ErrorCode::NotFound => return Err(error),
        Err(error) => {
            tracing::debug!(error = %ErrorChain(&error), "the environment of an execution could not be read");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3600);

    #[test]
    fn broken_session_is_repeated_until_the_limit() {
        let mut retry = Retry::new();
        assert_eq!(retry.next(ErrorCode::Unavailable, LIMIT), None);
        assert_eq!(retry.next(ErrorCode::BoxLost, LIMIT), Some(FIRST_PAUSE));
        for code in [ErrorCode::Unavailable, ErrorCode::Timeout] {
            assert!(retry.next(code, LIMIT).is_some(), "{code:?}");
        }
        assert_eq!(retry.next(ErrorCode::BoxLost, Duration::ZERO), None);
        retry.succeeded();
        assert_eq!(retry.next(ErrorCode::NotRunning, LIMIT), Some(FIRST_PAUSE));
        assert_eq!(retry.next(ErrorCode::NotFound, LIMIT), None);
    }

    #[test]
    fn pauses_grow_to_the_longest() {
        let mut retry = Retry::begun();
        let pauses: Vec<_> = (0..8)
            .filter_map(|_| retry.next(ErrorCode::BoxLost, LIMIT))
            .collect();
        assert_eq!(pauses.len(), 8);
        assert_eq!(pauses[1], FIRST_PAUSE * 2);
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
    }
}
