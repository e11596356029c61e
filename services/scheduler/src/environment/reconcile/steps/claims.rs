//! The steps of a claim: configuring the warm box that an environment has taken, and making its
//! cluster record that.
//!
//! * I1. A claim that fails for any reason leaves no box: the box is removed before the claim is given
//!   up, and the environment starts in a new one. Killed in between, the claim is tried again, finds no
//!   box, and is given up then.
//! * I2. Only the holder of a place in the queue removes a box, after it has read that the claim is
//!   still pending. So no box is removed that another replica has configured.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_runtime::{Observed, RuntimeError};
use chrono::Utc;

use super::{Next, call_runtime};
use crate::cluster::registry::Cluster;
use crate::environment::plan::{Observation, Plan, plan};
use crate::environment::reconcile::{ReconcileError, Reconciler};
use crate::environment::record::Record;
use crate::environment::spec::box_spec;
use crate::environment::store::{Claim, StoreError};
use crate::environment::warm_claim::WarmClaim;
use crate::metrics;

/// How long a create waits for its claim. Below the gateway's deadline, and below the time after which
/// the claim is reconciled.
const CREATE_TIMEOUT: Duration = Duration::from_secs(3);

impl Reconciler {
    /// Configures the warm box that the new environment `record` has claimed, without a place in the
    /// queue. Returns the environment as it is then: running, or pending when the claim failed or takes
    /// too long, which the queue completes. It is on the disk then.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn complete_create(&self, record: Record) -> Result<Record, StoreError> {
        let claiming = self.claim_now(Box::new(record.clone()));
        match tokio::time::timeout(CREATE_TIMEOUT, claiming).await {
            Ok(Ok(after)) if after != record => return Ok(after),
            Ok(Ok(_)) => {}
            // Another holder was faster.
            Ok(Err(ReconcileError::Store(StoreError::Fenced))) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), environment.id = %record.environment.id, "warm box not claimed by its create; retried");
            }
            Err(_) => {
                tracing::warn!(environment.id = %record.environment.id, "warm box not claimed in time by its create; retried");
            }
        }
        // A write, because the claim may not be on the disk without one.
        self.store.reconcile_now(&record.environment.id).await?;
        let current = self.store.get(&record.environment.id).await?;
        Ok(current.unwrap_or(record))
    }

    async fn claim_now(&self, record: Box<Record>) -> Result<Record, ReconcileError> {
        let claimed = (*record).clone();
        let Some(cluster) = self.clusters.get(&claimed.environment.cluster) else {
            return Ok(claimed);
        };
        let Plan::Claim { address } = plan(&claimed.intent(), &Observation::Unknown, Utc::now())
        else {
            return Ok(claimed);
        };
        let observed = match self.configure(cluster, &record, address).await? {
            Ok(observed) => observed,
            Err(error) => {
                report(&record, &error);
                return self.give_up_now(cluster, claimed).await;
            }
        };
        let observation = Observation::Present(observed);
        // Anything else is left to the queue.
        let Plan::Transition(event) = plan(&record.intent(), &observation, Utc::now()) else {
            return Ok(claimed);
        };
        let applying = self.apply_event(cluster, record, observation, &event, false);
        match applying.await? {
            Next::Continue(after, _) => Ok(*after),
            Next::Requeue(_) => Ok(claimed),
        }
    }

    /// Gives up the claim of `claimed` with a place in the queue, so that no other holder completes it
    /// meanwhile. Returns the environment as it is then.
    async fn give_up_now(
        &self,
        cluster: &Cluster,
        claimed: Record,
    ) -> Result<Record, ReconcileError> {
        let id = claimed.environment.id.clone();
        let holder = self.new_holder();
        if self.store.claim(&id, &holder).await? != Claim::Acquired {
            return Ok(claimed);
        }
        // Another holder may have completed it before.
        let current = self.store.get(&id).await?.unwrap_or(claimed);
        let given_up = match current.claim {
            Some(WarmClaim::Pending { .. }) => {
                self.give_up(cluster, Box::new(current.clone())).await
            }
            Some(WarmClaim::Unrecorded) | None => Ok(Next::Requeue(None)),
        };
        // True: it was requeued meanwhile, and is due after the next release.
        while self
            .store
            .release(&id, &holder, Some(Duration::ZERO))
            .await?
        {}
        match given_up? {
            Next::Continue(after, _) => Ok(*after),
            Next::Requeue(_) => Ok(current),
        }
    }

    /// Configures the warm box at `address`; if that fails, removes it and gives up the claim. To be
    /// called with a place in the queue.
    pub(super) async fn claim(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        address: SocketAddr,
    ) -> Result<Next, ReconcileError> {
        match self.configure(cluster, &record, address).await? {
            Ok(observed) => Ok(Next::Continue(record, Observation::Present(observed))),
            Err(error) => {
                report(&record, &error);
                // The request that made the claim may have completed it meanwhile.
                let current = self.store.get(&record.environment.id).await?;
                if current.as_ref() != Some(&*record) {
                    return Err(StoreError::Fenced.into());
                }
                self.give_up(cluster, record).await
            }
        }
    }

    /// Configures the warm box at `address`. The inner error: the box cannot be used.
    async fn configure(
        &self,
        cluster: &Cluster,
        record: &Record,
        address: SocketAddr,
    ) -> Result<Result<Observed, RuntimeError>, ReconcileError> {
        let environment = self.store.open(record)?;
        let boxes = &self.settings.boxes;
        let spec = box_spec(&environment, record.quantities, cluster, boxes)?;
        let generation = environment.generation;
        let claiming = call_runtime(cluster, "claim", |runtime| {
            runtime.claim(&spec, generation, address)
        });
        match claiming.await {
            Err(RuntimeError::Fenced { .. }) => Err(StoreError::Fenced.into()),
            outcome => Ok(outcome),
        }
    }

    /// Removes the box of a pending claim, and gives up the claim (I1).
    async fn give_up(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
    ) -> Result<Next, ReconcileError> {
        let id = record.environment.id.clone();
        if let Err(error) = self.remove(cluster, &id).await {
            return self.handle_error(cluster, record, "remove", error).await;
        }
        let after = self.store.abandon_claim(&record, Utc::now()).await?;
        self.outbox.wake(&id);
        if let Some(pool) = &after.environment.pool {
            metrics::pool_requested(pool);
        }
        Ok(Next::Continue(Box::new(after), Observation::Unknown))
    }

    /// Makes the cluster record the claim of a running box.
    pub(super) async fn record_claim(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
    ) -> Result<Next, ReconcileError> {
        let spec = self.complete_spec(cluster, &record).await?;
        let generation = record.environment.generation;
        let recording = call_runtime(cluster, "ensure", |runtime| {
            runtime.ensure(&spec, generation)
        });
        match recording.await {
            Ok(observed) => {
                let after = self.store.mark_claim_recorded(&record).await?;
                let observation = Observation::Present(observed);
                Ok(Next::Continue(Box::new(after), observation))
            }
            Err(RuntimeError::Fenced { .. }) => Err(StoreError::Fenced.into()),
            Err(error) => {
                self.handle_error(cluster, record, "record_claim", error)
                    .await
            }
        }
    }
}

fn report(record: &Record, error: &RuntimeError) {
    let id = &record.environment.id;
    metrics::step_failed("claim");
    tracing::warn!(error = %ErrorChain(error), environment.id = %id, "warm box not claimed; replaced by a new one");
}
