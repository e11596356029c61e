//! Brings one environment to its requested state: observe, plan, act, until nothing is left
//! to do now.
//!
//! Its only input is an id: a caller only wakes it. It keeps no state: when it is killed at any
//! line, the next reconcile continues from the row and the cluster.
//!
//! * I1. One claim at a time reconciles an environment. If two do, fencing (of the row) and
//!   generations (in the cluster) keep the result correct.
//! * I2. A change of intent interrupts a reconcile within [`RENEW_INTERVAL`].
//! * I3. A reconcile leaves a due time, unless nothing is left to do.

mod steps;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::{EnvironmentId, InstanceId};
use agentbox_runtime::RuntimeError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::registry::Clusters;
use crate::config::Settings;
use crate::environment::outbox::Outbox;
use crate::environment::spec::SpecError;
use crate::environment::store::{Claim, Store, StoreError};
use crate::metrics;

pub(crate) use steps::call_runtime;

/// A fifth of a claim's duration.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Restarts because of other writers before the claim is released.
const MAX_RESTARTS: usize = 16;
/// After an error that the environment did not cause.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cluster `{cluster}`")]
    Runtime {
        cluster: String,
        source: RuntimeError,
    },
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// How the steps of one claim ended.
enum Outcome {
    /// Reconcile again after this time, if at all.
    Requeue(Option<Duration>),
    /// The intent has changed: start again.
    Restart,
    /// Another holder has the claim.
    ClaimLost,
}

/// Reconciles environments; one for each replica.
pub struct Reconciler {
    pub(super) store: Store,
    pub(super) clusters: Clusters,
    pub(super) bus: Bus,
    pub(super) outbox: Outbox,
    pub(super) settings: Settings,
    instance: InstanceId,
    /// The number of claims so far, which makes the holder of each unique.
    claims: AtomicU64,
    shutdown: CancellationToken,
}

impl Reconciler {
    #[must_use]
    pub fn new(
        store: Store,
        clusters: Clusters,
        bus: Bus,
        outbox: Outbox,
        settings: Settings,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let instance = bus.instance().clone();
        Arc::new(Self {
            store,
            clusters,
            bus,
            outbox,
            settings,
            instance,
            claims: AtomicU64::new(0),
            shutdown,
        })
    }

    /// Reconciles `id`. When another holder is reconciling it, that holder does so once more. A warm
    /// box is observed again before it can be claimed.
    ///
    /// # Errors
    /// When the database fails. Errors of the cluster are retried when the environment is due.
    pub async fn reconcile(&self, id: &EnvironmentId) -> Result<(), StoreError> {
        let holder = self.new_holder();
        match self.store.claim(id, &holder).await? {
            Claim::Acquired => {}
            Claim::HeldElsewhere => return Ok(()),
            Claim::NotQueued => return self.store.recheck_warm_box(id).await,
        }
        let begun = Instant::now();
        let mut restarts = 0;
        loop {
            restarts += 1;
            let due = match self.reconcile_claimed(id, &holder).await {
                Ok(Outcome::Requeue(due)) => due,
                Ok(Outcome::Restart) if restarts < MAX_RESTARTS => continue,
                Ok(Outcome::Restart) => {
                    tracing::warn!(environment.id = %id, restarts, "environment changed during every reconcile; retried");
                    Some(RETRY_AFTER)
                }
                Ok(Outcome::ClaimLost) => break,
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "environment not reconciled; retried");
                    Some(RETRY_AFTER)
                }
            };
            if !self.store.release(id, &holder, due).await? {
                break;
            }
        }
        metrics::reconciled(begun.elapsed());
        Ok(())
    }

    /// The holder of a new claim in the queue.
    fn new_holder(&self) -> String {
        let claim = self.claims.fetch_add(1, Ordering::Relaxed);
        format!("{}.{claim}", self.instance)
    }

    /// Runs the steps while the claim is renewed.
    async fn reconcile_claimed(
        &self,
        id: &EnvironmentId,
        holder: &str,
    ) -> Result<Outcome, ReconcileError> {
        let generation = AtomicI64::new(0);
        tokio::select! {
            // The result of finished steps comes first, whatever else happened.
            biased;
            outcome = self.steps(id, &generation) => outcome,
            outcome = self.renew_claim(id, holder, &generation) => outcome,
            // Due at once, for another replica.
            () = self.shutdown.cancelled() => Ok(Outcome::Requeue(Some(Duration::ZERO))),
        }
    }

    /// Renews the claim until it is lost, or until the row has another generation than the
    /// one that is reconciled.
    async fn renew_claim(
        &self,
        id: &EnvironmentId,
        holder: &str,
        generation: &AtomicI64,
    ) -> Result<Outcome, ReconcileError> {
        loop {
            tokio::time::sleep(RENEW_INTERVAL).await;
            let reconciled = generation.load(Ordering::Acquire);
            match self.store.renew(id, holder).await {
                Ok(None) => return Ok(Outcome::ClaimLost),
                Ok(Some(renewal)) if reconciled != 0 && renewal.generation != reconciled => {
                    return Ok(Outcome::Restart);
                }
                Ok(Some(_)) => {}
                // The claim may expire: then two reconcile it for a while (I1).
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "claim not renewed");
                }
            }
        }
    }
}
