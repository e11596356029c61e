//! Leases of gateways: while a gateway holds one, it repeats what auth has confirmed of a credential, and
//! every change of a credential waits for it.
//!
//! Owns tables `credential_revision` and `gateway_leases`. Decides nothing about a credential.
//!
//! * I1. After [`GatewayLeases::settle`] no gateway repeats what was confirmed before the call. Each gateway
//!   with a row has forgotten it, or a lease from before the call has run out by then.
//! * I2. A renewal commits its row before it reads the revision. So a change that does not find the row has
//!   committed before the gateway reads the revision, and the gateway forgets what it knew.
//! * I3. A trigger raises the revision with each change, also with one that no method of auth makes. So a
//!   gateway that got no message forgets at its next renewal.
//! * I4. The row of a gateway that does not answer is removed, so that the next change does not wait for it;
//!   but only after every lease of that row has run out, and if it was not renewed meanwhile. The number of a
//!   renewal is never used again, so no row that was removed and inserted again is taken for the former one.
//! * I5. Durations of this process' own clock decide, and no time of day.

mod store;

use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::Error;
use agentbox_contracts::identity::CREDENTIAL_LEASE;
use agentbox_contracts::identity::rpc::{CredentialRevision, ForgetCredentials, LeaseRequest};
use futures::future::join_all;
use sea_orm::DatabaseConnection;
use tokio::time::{Instant, sleep_until, timeout};

use crate::metrics;
use crate::store::StoreError;
use store::{Lease, Leases};

/// How much longer than a lease a change waits. Clocks of two machines do not run at exactly the same speed.
const MARGIN: Duration = Duration::from_millis(300);
/// How long the rows may take to be read. A lease of a row that was read ends before the wait does.
const READ_DEADLINE: Duration = Duration::from_millis(250);
/// How long the removal of rows may take.
const REMOVE_DEADLINE: Duration = Duration::from_millis(150);
/// How long a gateway may take to answer one request. It may get another one.
const ANSWER_DEADLINE: Duration = Duration::from_millis(500);
/// By how much the clocks of auth and of a gateway may differ. A server ignores a request whose deadline has
/// passed by its own clock. To forget later than asked is harmless.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(60);
/// The pause after a request that failed, for example because the gateway connects to NATS again.
const RETRY: Duration = Duration::from_millis(100);

const _: () = assert!(READ_DEADLINE.as_millis() < MARGIN.as_millis());

pub struct GatewayLeases {
    database: DatabaseConnection,
    bus: Bus,
}

impl GatewayLeases {
    pub fn new(database: DatabaseConnection, bus: Bus) -> Self {
        Self { database, bus }
    }

    /// Renews the lease of a gateway, and returns the current revision.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn renew(&self, request: LeaseRequest) -> Result<CredentialRevision, Error> {
        // Two statements, of which the first is committed when the second one begins (I2).
        store::renew(&self.database, &request.gateway).await?;
        let revision = store::revision(&self.database).await?;
        Ok(CredentialRevision { revision })
    }

    /// Ends the lease of a gateway that no longer uses it.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn release(&self, request: LeaseRequest) -> Result<(), Error> {
        Ok(store::release(&self.database, &request.gateway).await?)
    }

    /// Waits until no gateway repeats what was confirmed before this call, for at most the duration of a lease
    /// and [`MARGIN`].
    pub async fn settle(&self) {
        let begun = Instant::now();
        let until = begun + CREDENTIAL_LEASE + MARGIN;
        // After a stall of this process the rows may be newer than the wait is long.
        let in_time = |_: &Leases| begun.elapsed() <= READ_DEADLINE;
        match self.leases().await.filter(in_time) {
            Some(Leases { revision, held }) => {
                let asked = held
                    .into_iter()
                    .map(|lease| self.ask_to_forget(lease, revision, until));
                let silent: Vec<Lease> = join_all(asked).await.into_iter().flatten().collect();
                if !silent.is_empty() {
                    self.remove(&silent).await;
                }
            }
            // Any gateway may hold a lease.
            None => sleep_until(until).await,
        }
        metrics::change_settled(begun.elapsed());
    }

    /// The leases, or `None` if they cannot be read in time.
    async fn leases(&self) -> Option<Leases> {
        match timeout(READ_DEADLINE, store::all(&self.database)).await {
            Ok(Ok(leases)) => return Some(leases),
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "leases of gateways not read");
            }
            Err(_) => tracing::warn!("leases of gateways not read in time"),
        }
        None
    }

    /// Asks a gateway until it has forgotten. Returns its lease if it has not by `until`.
    async fn ask_to_forget(&self, lease: Lease, revision: i64, until: Instant) -> Option<Lease> {
        let request = CredentialRevision { revision };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(lease);
            }
            let asked = self.bus.call_instance::<ForgetCredentials>(
                &lease.gateway,
                &request,
                CLOCK_DIFFERENCE,
            );
            if let Ok(Ok(_)) = timeout(left.min(ANSWER_DEADLINE), asked).await {
                return None;
            }
            sleep_until(until.min(Instant::now() + RETRY)).await;
        }
    }

    /// Removes leases that have run out.
    async fn remove(&self, silent: &[Lease]) {
        let removing = async {
            for lease in silent {
                if store::remove(&self.database, lease).await? {
                    metrics::gateway_lease_expired();
                    tracing::warn!(
                        gateway = %lease.gateway,
                        "gateway did not answer; its lease has run out and was removed"
                    );
                }
            }
            Ok::<_, StoreError>(())
        };
        // If it fails, the next change waits again.
        match timeout(REMOVE_DEADLINE, removing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "leases that ran out not removed");
            }
            Err(_) => tracing::warn!("leases that ran out not removed in time"),
        }
    }
}
