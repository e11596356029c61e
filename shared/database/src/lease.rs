//! Leader election: one replica of many does a piece of work, while it holds a lease.
//!
//! A lease is a row of the table `leases` of the service's own schema ([`CREATE_LEASES`]).
//!
//! * I1. Work is cancelled when its lease is lost or cannot be renewed. Two replicas may
//!   overlap for a moment, so the work itself must be safe to do twice.
//! * I2. Another replica takes over the work of a killed one within [`LEASE`].
//! * I3. Expiry is compared with Postgres' clock alone.

use std::future::Future;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::InstanceId;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};
use tokio_util::sync::CancellationToken;

use crate::sql::{seconds, statement};

/// How long a lease lasts without being renewed.
pub const LEASE: Duration = Duration::from_secs(4);
/// How often a lease is renewed, or tried to be taken. Each attempt must be answered within it.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// Creates the table; for a migration of the service.
pub const CREATE_LEASES: &str = "
CREATE TABLE leases (
    name text PRIMARY KEY,
    holder text NOT NULL,
    expires_at timestamptz NOT NULL
);
";

/// The leases of one service, acquired for one replica.
#[derive(Clone)]
pub struct Leases {
    database: DatabaseConnection,
    holder: InstanceId,
}

impl Leases {
    /// The leases in `database`, for the replica `holder`.
    #[must_use]
    pub fn new(database: DatabaseConnection, holder: InstanceId) -> Self {
        Self { database, holder }
    }

    /// Takes or renews the lease `name` for `duration`. True: this replica holds it now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn acquire(&self, name: &str, duration: Duration) -> Result<bool, DbErr> {
        let acquire = statement(
            "INSERT INTO leases AS held (name, holder, expires_at)
             VALUES ($1, $2, now() + make_interval(secs => $3))
             ON CONFLICT (name) DO UPDATE
                SET holder = excluded.holder, expires_at = excluded.expires_at
                WHERE held.holder = excluded.holder OR held.expires_at < now()
             RETURNING true AS acquired",
            [name.into(), self.holder.as_str().into(), seconds(duration)],
        );
        Ok(self.database.query_one_raw(acquire).await?.is_some())
    }

    /// Releases a lease, so that another replica need not wait until it expires.
    ///
    /// # Errors
    /// When the database fails; the lease then expires.
    pub async fn release(&self, name: &str) -> Result<(), DbErr> {
        let release = statement(
            "DELETE FROM leases WHERE name = $1 AND holder = $2",
            [name.into(), self.holder.as_str().into()],
        );
        self.database.execute_raw(release).await?;
        Ok(())
    }

    /// Runs `work` whenever this replica holds the lease `name`, until `shutdown`. `work`
    /// must return soon after its token is cancelled. When it returns earlier, it is called
    /// again.
    pub async fn run_while_held<F, Fut>(&self, name: &str, shutdown: &CancellationToken, work: F)
    where
        F: Fn(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        while !shutdown.is_cancelled() {
            if self.acquire_or_renew(name).await {
                tracing::debug!(lease = name, "lease acquired");
                let held = shutdown.child_token();
                let working = work(held.clone());
                let renewing = async {
                    while !held.is_cancelled() {
                        tokio::select! {
                            () = held.cancelled() => {}
                            () = tokio::time::sleep(RENEW_INTERVAL) => {
                                if !self.acquire_or_renew(name).await {
                                    tracing::info!(lease = name, "lease lost");
                                    held.cancel();
                                }
                            }
                        }
                    }
                };
                tokio::pin!(renewing, working);
                tokio::select! {
                    () = &mut working => held.cancel(),
                    () = &mut renewing => working.await,
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(RENEW_INTERVAL) => {}
            }
        }
        if let Err(error) = self.release(name).await {
            tracing::debug!(
                error = %ErrorChain(&error),
                lease = name,
                "lease not released; it expires"
            );
        }
    }

    /// Takes or renews the lease for [`LEASE`]. False: another replica holds it, or the database
    /// does not answer in time.
    async fn acquire_or_renew(&self, name: &str) -> bool {
        match tokio::time::timeout(RENEW_INTERVAL, self.acquire(name, LEASE)).await {
            Ok(Ok(acquired)) => acquired,
            Ok(Err(error)) => {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    lease = name,
                    "lease not renewed"
                );
                false
            }
            Err(_) => false,
        }
    }
}
