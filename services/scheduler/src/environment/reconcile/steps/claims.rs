//! The steps of a claim: configuring the warm box that an environment has taken, and making its
//! cluster record that.
//!
//! * I1. A claim that fails for any reason leaves no box: the box is removed before the claim is given
//!   up, and the environment starts in a new one. Killed in between, the claim is tried again, finds no
//!   box, and is given up then.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_runtime::RuntimeError;
use chrono::Utc;

use super::{Next, call_runtime};
use crate::cluster::registry::Cluster;
use crate::environment::plan::{Observation, Plan, plan};
use crate::environment::reconcile::{ReconcileError, Reconciler};
use crate::environment::record::Record;
use crate::environment::spec::box_spec;
use crate::environment::store::StoreError;
use crate::metrics;

/// How long a create waits for its claim. Below the gateway's deadline, and below the time after which
/// the claim is reconciled.
const CREATE_TIMEOUT: Duration = Duration::from_secs(3);

impl Reconciler {
    /// Configures the warm box that the new environment `record` has claimed, without a place in the
    /// queue. Returns the environment as it is then: running, or pending when the claim failed or takes
    /// too long, which the queue completes.
    pub async fn complete_create(&self, record: Record) -> Record {
        let claiming = self.claim_now(Box::new(record.clone()));
        match tokio::time::timeout(CREATE_TIMEOUT, claiming).await {
            Ok(Ok(after)) => return after,
            // Another holder was faster.
            Ok(Err(ReconcileError::Store(StoreError::Fenced))) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), environment.id = %record.environment.id, "warm box not claimed by its create; retried");
            }
            Err(_) => {
                tracing::warn!(environment.id = %record.environment.id, "warm box not claimed in time by its create; retried");
            }
        }
        match self.store.get(&record.environment.id).await {
            Ok(Some(current)) => current,
            Ok(None) | Err(_) => record,
        }
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
        let Next::Continue(record, observation) = self.claim(cluster, record, address).await?
        else {
            return Ok(claimed);
        };
        let step = plan(&record.intent(), &observation, Utc::now());
        // Anything else is left to the queue: a new box takes longer than a create waits.
        let (Observation::Present(_), Plan::Transition(event)) = (&observation, step) else {
            return Ok(*record);
        };
        let before = (*record).clone();
        match self
            .apply_event(cluster, record, observation, &event, false)
            .await?
        {
            Next::Continue(after, _) => Ok(*after),
            Next::Requeue(_) => Ok(before),
        }
    }

    /// Configures the warm box at `address`; if that fails, removes it and gives up the claim.
    pub(super) async fn claim(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        address: SocketAddr,
    ) -> Result<Next, ReconcileError> {
        let environment = self.store.open(&record)?;
        let boxes = &self.settings.boxes;
        let spec = box_spec(&environment, record.quantities, cluster, boxes)?;
        let generation = environment.generation;
        let claiming = call_runtime(cluster, "claim", |runtime| {
            runtime.claim(&spec, generation, address)
        });
        let error = match claiming.await {
            Ok(observed) => return Ok(Next::Continue(record, Observation::Present(observed))),
            Err(RuntimeError::Fenced { .. }) => return Err(StoreError::Fenced.into()),
            Err(error) => error,
        };
        metrics::step_failed("claim");
        tracing::warn!(error = %ErrorChain(&error), environment.id = %spec.id, "warm box not claimed; replaced by a new one");
        if let Err(error) = self.remove(cluster, &spec.id).await {
            return self.handle_error(cluster, record, "remove", error).await;
        }
        let after = self.store.abandon_claim(&record, Utc::now()).await?;
        self.outbox.wake(&spec.id);
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
