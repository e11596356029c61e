//! Telling the scheduler that a user is gone, until it has heard.
//!
//! Owns table `user_deletions`. Any replica carries on what another left.
//!
//! * I1. A deletion is recorded in the transaction that removes the user, and stays until
//!   the scheduler has answered twice: the second time catches an environment whose
//!   creation was on its way when the user went.
//! * I2. A claimed row comes back by itself when its worker dies.

pub mod store;

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::environment::rpc::{DeleteOwned, DeleteOwnedRequest};
use sea_orm::DatabaseConnection;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::StoreError;
use crate::metrics;

/// How often a replica looks for work that no deletion of its own woke it for.
const POLL: Duration = Duration::from_secs(5);
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a claimed row stays with its worker: longer than one call.
const LEASE: Duration = Duration::from_secs(30);
/// When the scheduler is told again: no request is on its way for so long.
const SETTLE: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What becomes of a deletion after one call.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The scheduler has not heard; try again after this long.
    Retry(Duration),
    /// It has heard once; tell it again after this long.
    Confirm(Duration),
    Done,
}

/// `attempt` counts from 1; `was_told`: the scheduler has answered before.
#[must_use]
pub fn next(heard: bool, was_told: bool, attempt: i32) -> Next {
    match (heard, was_told) {
        (true, true) => Next::Done,
        (true, false) => Next::Confirm(SETTLE),
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
    /// Until `shutdown`.
    ///
    /// # Errors
    /// None: what fails is tried again.
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
                match self.carry_on().await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(%error, "user deletions wait for the database");
                        break;
                    }
                }
            }
        }
    }

    /// One due deletion; whether there was one.
    async fn carry_on(&self) -> Result<bool, StoreError> {
        let Some(deletion) = store::claim(&self.database, LEASE).await? else {
            return Ok(false);
        };
        let request = DeleteOwnedRequest {
            owner: deletion.user.clone(),
        };
        let answer = self.bus.call::<DeleteOwned>(&request, CALL_DEADLINE).await;
        if let Err(error) = &answer {
            tracing::warn!(user = %deletion.user, %error, attempt = deletion.attempts,
                "the scheduler has not ended a deleted user's environments yet");
        }
        metrics::deletion_told(answer.is_ok());
        let next = next(answer.is_ok(), deletion.was_told, deletion.attempts);
        store::settle(&self.database, &deletion.user, &next).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_is_done_when_the_scheduler_has_answered_twice() {
        for (heard, was_told, attempt, expected) in [
            (true, false, 1, Next::Confirm(SETTLE)),
            (true, true, 2, Next::Done),
            (false, false, 1, Next::Retry(Duration::from_secs(1))),
            (false, false, 4, Next::Retry(Duration::from_secs(8))),
            (false, true, 50, Next::Retry(LAST_RETRY)),
            (false, false, i32::MIN, Next::Retry(FIRST_RETRY)),
        ] {
            assert_eq!(
                next(heard, was_told, attempt),
                expected,
                "{heard} {was_told} {attempt}"
            );
        }
    }

    #[test]
    fn a_lease_outlasts_the_call_it_is_for() {
        assert!(LEASE > CALL_DEADLINE);
    }
}
