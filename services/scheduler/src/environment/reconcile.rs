//! Brings one environment to where it shall be: look, plan, do, until nothing is left to
//! do now.
//!
//! Takes no input but an id: whoever calls only wakes. Owns no state; killed at any line,
//! the next one goes on from what the row and the cluster say.
//!
//! * I1. One claim at a time drives an environment; should two do, fencing (row) and
//!   generations (cluster) keep it correct.
//! * I2. A change of intent interrupts what is going on within [`RENEW_EVERY`].
//! * I3. It never ends without a due time, unless nothing is left to do.

mod steps;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use agentbox_bus::Bus;
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

/// A fifth of what a claim lasts.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// So often others may win before this claim takes a rest.
const MAX_ROUNDS: usize = 16;
/// After something failed that is not the environment's fault.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cluster `{cluster}`: {source}")]
    Runtime {
        cluster: String,
        source: RuntimeError,
    },
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// How a drive ended.
enum Outcome {
    /// For now; look again after so long, if at all.
    Rest(Option<Duration>),
    /// What is wanted has changed: begin again.
    Again,
    /// Somebody else has it now.
    Lost,
}

/// Everything that driving an environment needs.
pub struct Reconciler {
    pub(super) store: Store,
    pub(super) clusters: Clusters,
    pub(super) bus: Bus,
    pub(super) outbox: Outbox,
    pub(super) settings: Settings,
    instance: InstanceId,
    claims: AtomicU64,
    stopping: CancellationToken,
}

impl Reconciler {
    #[must_use]
    pub fn new(
        store: Store,
        clusters: Clusters,
        bus: Bus,
        outbox: Outbox,
        settings: Settings,
        stopping: CancellationToken,
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
            stopping,
        })
    }

    /// Drives `id`, unless somebody else does: then that one goes round again.
    ///
    /// # Errors
    /// When the database fails. What the cluster fails with is retried when it is due.
    pub async fn reconcile(&self, id: &EnvironmentId) -> Result<(), StoreError> {
        let claim = self.claims.fetch_add(1, Ordering::Relaxed);
        let holder = format!("{}.{claim}", self.instance);
        if self.store.claim(id, &holder).await? != Claim::Ours {
            return Ok(());
        }
        let begun = Instant::now();
        let mut rounds = 0;
        loop {
            rounds += 1;
            let due = match self.drive(id, &holder).await {
                Ok(Outcome::Rest(due)) => due,
                Ok(Outcome::Again) if rounds < MAX_ROUNDS => continue,
                Ok(Outcome::Again) => {
                    tracing::warn!(environment = %id, "it keeps changing, or its cluster is ahead of its row");
                    Some(RETRY_AFTER)
                }
                Ok(Outcome::Lost) => break,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        environment = %id,
                        "not done yet; it is tried again"
                    );
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

    /// One drive, with the claim kept meanwhile.
    async fn drive(&self, id: &EnvironmentId, holder: &str) -> Result<Outcome, ReconcileError> {
        let generation = AtomicI64::new(0);
        tokio::select! {
            // An end that has come counts, whatever else has.
            biased;
            outcome = self.steps(id, &generation) => outcome,
            outcome = self.keep(id, holder, &generation) => outcome,
            // Another replica takes it at once.
            () = self.stopping.cancelled() => Ok(Outcome::Rest(Some(Duration::ZERO))),
        }
    }

    /// Renews the claim until it is lost, or until another generation is wanted than the
    /// one that is worked on.
    async fn keep(
        &self,
        id: &EnvironmentId,
        holder: &str,
        generation: &AtomicI64,
    ) -> Result<Outcome, ReconcileError> {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let working_on = generation.load(Ordering::Acquire);
            match self.store.renew(id, holder).await {
                Ok(None) => return Ok(Outcome::Lost),
                Ok(Some(held)) if working_on != 0 && held.generation != working_on => {
                    return Ok(Outcome::Again);
                }
                Ok(Some(_)) => {}
                // The claim may run out: then two drive it for a while, fenced.
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, environment = %id, "a claim was not renewed")
                }
            }
        }
    }
}
