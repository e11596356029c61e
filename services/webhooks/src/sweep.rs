//! Deletes old deliveries, and the webhooks of users that no longer exist.
//!
//! * I1. One replica sweeps, the holder of lease `sweep`. Two replicas that overlap for a moment delete
//!   the same rows, which is harmless.

use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::rpc::{GetUser, UserRequest};
use agentbox_contracts::ids::UserId;
use agentbox_database::Leases;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::store::deliveries::PURGED_AT_ONCE;
use crate::store::{Store, StoreError};

const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// How long after a check an owner is not checked again. The webhooks of a deleted user may stay for this
/// time: its environments end when it is deleted, so they soon cause no more events.
const OWNER_CHECK_INTERVAL: Duration = Duration::from_secs(3_600);

pub struct Sweeper {
    pub leases: Leases,
    pub store: Store,
    pub bus: Bus,
    pub interval: Duration,
    /// How long an ended delivery is kept.
    pub retention: Duration,
}

impl Sweeper {
    /// Sweeps until `shutdown`, while this replica holds the lease.
    ///
    /// # Errors
    /// None: a failed sweep is retried at the next interval.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), anyhow::Error> {
        let sweeper = &self;
        let work = |held: CancellationToken| async move {
            held.run_until_cancelled(sweeper.sweep_every_interval())
                .await;
        };
        self.leases.run_while_held("sweep", &shutdown, work).await;
        Ok(())
    }

    async fn sweep_every_interval(&self) {
        let mut tick = tokio::time::interval(self.interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(error) = self.purge().await {
                tracing::warn!(error = %ErrorChain(&error), "old deliveries not deleted; retried");
            }
            if let Err(error) = self.check_owners().await {
                tracing::warn!(error = %ErrorChain(&error), "owners not checked; retried");
            }
        }
    }

    /// Deletes old deliveries, batch by batch.
    async fn purge(&self) -> Result<(), StoreError> {
        loop {
            let rows = self.store.purge_deliveries(self.retention).await?;
            metrics::rows_purged("deliveries", rows);
            if rows < PURGED_AT_ONCE {
                return Ok(());
            }
        }
    }

    async fn check_owners(&self) -> Result<(), StoreError> {
        for owner in self.store.owners_to_check(OWNER_CHECK_INTERVAL).await? {
            match self.exists(&owner).await {
                Some(true) => self.store.mark_owner_checked(&owner).await?,
                Some(false) => {
                    let rows = self.store.delete_owned(&owner).await?;
                    metrics::rows_purged("webhooks", rows);
                    tracing::info!(%owner, webhooks = rows, "webhooks of a deleted user deleted");
                }
                // Auth does not answer: the next sweep asks again.
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether auth knows the user; `None` when it does not answer.
    async fn exists(&self, owner: &UserId) -> Option<bool> {
        let request = UserRequest { id: owner.clone() };
        match self.bus.call::<GetUser>(&request, CALL_DEADLINE).await {
            Ok(_) => Some(true),
            Err(error) if error.code == ErrorCode::NotFound => Some(false),
            Err(error) => {
                let reason = error.message;
                tracing::info!(reason, "owner not looked up; retried");
                None
            }
        }
    }
}
