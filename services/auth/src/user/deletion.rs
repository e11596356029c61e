//! Notifies the scheduler that a user was deleted, until it has confirmed.
//!
//! Owns table `user_deletions`. Any replica can continue the notifications of another.
//!
//! * I1. A deletion is recorded in the transaction that deletes the user, and stays until
//!   the scheduler has confirmed twice: the second time catches an environment whose
//!   creation was in flight when the user was deleted.
//! * I2. A claimed row can be claimed again after [`LEASE`], also when its worker was killed.

pub mod store;

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::rpc::{DeleteOwned, DeleteOwnedRequest};
use sea_orm::DatabaseConnection;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::store::StoreError;

/// How often a replica looks for deletions that another replica has recorded or not finished.
const POLL: Duration = Duration::from_secs(5);
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a claimed row is hidden from other workers: longer than one call.
const LEASE: Duration = Duration::from_secs(30);
/// How long after the first confirmation the scheduler is notified again. No create is in flight
/// for so long.
const CONFIRM_AFTER: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// The next step of a deletion after one call.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The scheduler did not answer: try again after this long.
    Retry(Duration),
    /// It has confirmed once: notify it again after this long.
    Confirm(Duration),
    Done,
}

/// The next step after attempt number `attempt`, counted from 1. `confirmed_before`: an
/// earlier attempt was confirmed.
#[must_use]
pub fn next(confirmed: bool, confirmed_before: bool, attempt: i32) -> Next {
    match (confirmed, confirmed_before) {
        (true, true) => Next::Done,
        (true, false) => Next::Confirm(CONFIRM_AFTER),
        (false, _) => {
            let doublings = u32::try_from(attempt.saturating_sub(1))
                .unwrap_or_default()
                .min(10);
            Next::Retry((FIRST_RETRY * (1 << doublings)).min(LAST_RETRY))
        }
    }
}

pub struct DeletionWorker {
    pub database: DatabaseConnection,
    pub bus: Bus,
    pub deleted: Arc<Notify>,
}

impl DeletionWorker {
    /// Notifies the scheduler of due deletions until `shutdown`.
    ///
    /// # Errors
    /// None: a failed attempt is retried.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), anyhow::Error> {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = poll.tick() => {}
                () = self.deleted.notified() => {}
            }
            while !shutdown.is_cancelled() {
                match self.notify_next().await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(
                            error = %ErrorChain(&error),
                            "user deletions not read or not written; retried"
                        );
                        break;
                    }
                }
            }
        }
    }

    /// Notifies the scheduler of the most overdue deletion. False: none is due.
    async fn notify_next(&self) -> Result<bool, StoreError> {
        let Some(deletion) = store::claim(&self.database, LEASE).await? else {
            return Ok(false);
        };
        let request = DeleteOwnedRequest {
            owner: deletion.user_id.0.clone(),
        };
        let answer = self.bus.call::<DeleteOwned>(&request, CALL_DEADLINE).await;
        if let Err(error) = &answer {
            tracing::warn!(
                user = %deletion.user_id.0,
                error = %ErrorChain(error),
                attempt = deletion.attempts,
                "scheduler not notified of a deleted user; retried"
            );
        }
        metrics::deletion_notified(answer.is_ok());
        let confirmed_before = deletion.acknowledged_at.is_some();
        let next = next(answer.is_ok(), confirmed_before, deletion.attempts);
        store::settle(&self.database, &request.owner, &next).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletion_confirmed_twice_is_done() {
        for (confirmed, before, attempt, expected) in [
            (true, false, 1, Next::Confirm(CONFIRM_AFTER)),
            (true, true, 2, Next::Done),
            (false, false, 1, Next::Retry(Duration::from_secs(1))),
            (false, false, 4, Next::Retry(Duration::from_secs(8))),
            (false, true, 50, Next::Retry(LAST_RETRY)),
            (false, false, i32::MIN, Next::Retry(FIRST_RETRY)),
        ] {
            assert_eq!(
                next(confirmed, before, attempt),
                expected,
                "{confirmed} {before} {attempt}"
            );
        }
    }

    #[test]
    fn lease_outlasts_one_call() {
        assert!(LEASE > CALL_DEADLINE);
    }
}
