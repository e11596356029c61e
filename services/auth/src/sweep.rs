//! Deletes expired rows.
//!
//! * I1. Correctness never depends on it: every query tests the time itself.
//! * I2. One replica sweeps, the holder of lease `sweep`, in batches that hold no lock for
//!   long. Two replicas that overlap for a moment delete the same rows, which is harmless.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_database::sql::ago;
use agentbox_database::{Leases, span};
use sea_orm::sea_query::{ExprTrait, IntoCondition};
use sea_orm::{
    ColumnTrait, Condition, DatabaseConnection, EntityTrait, QueryFilter, QuerySelect, QueryTrait,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::audit;
use crate::audit::chain::ChainKey;
use crate::audit::store::PRUNED_AT_ONCE;
use crate::entity::{api_keys, logins, previews, signing_keys, tickets};
use crate::metrics;

/// The most rows that one statement deletes.
const BATCH: u64 = 1_000;
/// How long an expired login, ticket, preview or signing key is kept, for the analysis of incidents.
const GRACE: Duration = Duration::from_secs(3_600);

pub struct Sweeper {
    pub database: DatabaseConnection,
    pub leases: Leases,
    pub interval: Duration,
    /// How long a revoked or expired API key is kept.
    pub key_retention: Duration,
    pub audit_retention: Duration,
    /// Signs the checkpoint that the retention of the audit trail leaves.
    pub audit_key: ChainKey,
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
            self.sweep().await;
        }
    }

    async fn sweep(&self) {
        let expired = tickets::Column::ExpiresAt.into_expr().lt(ago(GRACE));
        self.purge::<tickets::Entity>(tickets::Column::Hash, expired)
            .await;
        let expired = previews::Column::ExpiresAt.into_expr().lt(ago(GRACE));
        self.purge::<previews::Entity>(previews::Column::Id, expired)
            .await;
        let expired = logins::Column::ExpiresAt.into_expr().lt(ago(GRACE));
        self.purge::<logins::Entity>(logins::Column::Id, expired)
            .await;
        let ended = Condition::any()
            .add(
                api_keys::Column::RevokedAt
                    .into_expr()
                    .lt(ago(self.key_retention)),
            )
            .add(
                api_keys::Column::ExpiresAt
                    .into_expr()
                    .lt(ago(self.key_retention)),
            );
        self.purge::<api_keys::Entity>(api_keys::Column::Id, ended)
            .await;
        let expired = signing_keys::Column::NotAfter.into_expr().lt(ago(GRACE));
        self.purge::<signing_keys::Entity>(signing_keys::Column::Kid, expired)
            .await;
        self.prune_audit().await;
    }

    /// Deletes old entries of the audit trail, batch by batch.
    async fn prune_audit(&self) {
        loop {
            let pruned =
                audit::store::prune(&self.database, &self.audit_key, self.audit_retention).await;
            match pruned {
                Ok(rows) => {
                    metrics::rows_purged("audit_log", rows);
                    if rows < PRUNED_AT_ONCE {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "old audit entries not deleted; retried");
                    return;
                }
            }
        }
    }

    /// Deletes the rows of a table that match `condition`, batch by batch.
    async fn purge<E: EntityTrait>(&self, key: E::Column, condition: impl IntoCondition) {
        let table = E::default().table_name();
        let batch = E::find()
            .select_only()
            .column(key)
            .filter(condition)
            .limit(BATCH)
            .into_query();
        loop {
            let delete = E::delete_many().filter(key.in_subquery(batch.clone()));
            let delete = delete.exec(&self.database);
            match delete.instrument(span!(DELETE, table)).await {
                Ok(deleted) => {
                    metrics::rows_purged(table, deleted.rows_affected);
                    if deleted.rows_affected < BATCH {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), table, "expired rows not deleted; retried");
                    return;
                }
            }
        }
    }
}
