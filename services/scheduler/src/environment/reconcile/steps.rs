//! Carries out the plan, step by step.

mod archives;
mod claims;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::image_reference::{canonical_registry, registry};
use agentbox_runtime::{BoxPhase, BoxSpec, Runtime, RuntimeError};
use chrono::Utc;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Outcome, ReconcileError, Reconciler};
use crate::cluster::placement::allocatable;
use crate::cluster::registry::Cluster;
use crate::environment::plan::{Observation, Plan, Removal, plan, plan_after_error};
use crate::environment::record::Record;
use crate::environment::spec::box_spec;
use crate::environment::state::{LifecycleEvent, transition};
use crate::environment::store::{Change, QueueAction, Reservation, StoreError};
use crate::environment::warm_claim::WarmClaim;
use crate::environment::{execution_events, metering};
use crate::metrics;
use archives::archive_request;

/// More steps than any path through the states has.
const MAX_STEPS: usize = 24;
/// The pause after a plan with more steps, which is a fault in the plan.
const RETRY_AFTER_TOO_MANY_STEPS: Duration = Duration::from_secs(30);
const ARCHIVE_RETRY: Duration = Duration::from_millis(500);
/// How soon a pending environment asks for capacity again.
const CAPACITY_RETRY: Duration = Duration::from_secs(1);
/// How soon the cluster records a claim, when the request that made it has been answered. After a burst of claims,
/// which it would slow down.
const RECORD_CLAIM_WITHIN: Duration = Duration::from_secs(3);

/// The result of a step.
enum Next {
    /// Plan again, with this record and this observation.
    Continue(Box<Record>, Observation),
    /// Reconcile again after this time, if at all.
    Requeue(Option<Duration>),
}

/// Calls a cluster's driver; makes a span of the call and records its duration. Fails when the
/// driver is not connected yet.
pub(crate) async fn call_runtime<'a, T>(
    cluster: &'a Cluster,
    name: &'static str,
    call: impl FnOnce(&'a dyn Runtime) -> BoxFuture<'a, Result<T, RuntimeError>>,
) -> Result<T, RuntimeError> {
    let Some(runtime) = cluster.runtime() else {
        let message = "its driver is not connected yet".to_owned();
        return Err(RuntimeError::Unavailable(message));
    };
    let span = tracing::info_span!(
        "runtime",
        otel.name = format!("{} {name}", cluster.driver),
        otel.kind = "client",
        cluster = cluster.name,
    );
    let begun = Instant::now();
    let outcome = call(runtime.as_ref()).instrument(span).await;
    metrics::runtime_called(&cluster.name, name, outcome.is_ok(), begun.elapsed());
    outcome
}

impl Reconciler {
    pub(super) async fn steps(
        &self,
        id: &EnvironmentId,
        generation: &AtomicI64,
    ) -> Result<Outcome, ReconcileError> {
        let Some(record) = self.store.get(id).await? else {
            return Ok(Outcome::Requeue(None));
        };
        let Some(cluster) = self.clusters.get(&record.environment.cluster).cloned() else {
            tracing::warn!(cluster = record.environment.cluster, environment.id = %id, "cluster of the environment is not configured");
            return Ok(Outcome::Requeue(Some(super::RETRY_AFTER)));
        };
        let (mut record, mut observation) = (Box::new(record), Observation::Unknown);
        for _ in 0..MAX_STEPS {
            generation.store(record.environment.generation, Ordering::Release);
            let step = plan(&record.intent(), &observation, Utc::now());
            tracing::debug!(environment.id = %id, ?step, "next step");
            match self.step(&cluster, record, observation, step).await {
                Ok(Next::Continue(next, observed)) => (record, observation) = (next, observed),
                Ok(Next::Requeue(due)) => return Ok(Outcome::Requeue(due)),
                Err(ReconcileError::Store(StoreError::Fenced)) => return Ok(Outcome::Restart),
                Err(error) => return Err(error),
            }
        }
        tracing::error!(environment.id = %id, steps = MAX_STEPS, "reconcile stopped: the plan does not converge");
        Ok(Outcome::Requeue(Some(RETRY_AFTER_TOO_MANY_STEPS)))
    }

    async fn step(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        observation: Observation,
        step: Plan,
    ) -> Result<Next, ReconcileError> {
        let id = &record.environment.id.clone();
        match step {
            Plan::Done => Ok(Next::Requeue(None)),
            Plan::RequeueAfter(after) => {
                if let Observation::Present(observed) = &observation
                    && let BoxPhase::Starting { message } = &observed.phase
                    && !message.is_empty()
                {
                    self.store.set_status_message(&record, message).await?;
                }
                Ok(Next::Requeue(Some(after)))
            }
            Plan::ReserveCapacity => self.reserve_capacity(cluster, record).await,
            Plan::Observe => self.observe(cluster, record).await,
            Plan::Ensure => self.ensure(cluster, record).await,
            Plan::Claim { address } => self.claim(cluster, record, address).await,
            Plan::RecordClaim => self.record_claim(cluster, record).await,
            Plan::ApplyNetworkPolicy => {
                self.apply_network_policy(cluster, record, observation)
                    .await
            }
            Plan::Stop { grace } => self.stop(cluster, record, grace).await,
            Plan::Finalize {
                archive,
                removal,
                event,
            } => {
                let request = archive_request(&record, &event, &observation);
                if !self.archive(&record, archive, request).await {
                    return Ok(Next::Requeue(Some(ARCHIVE_RETRY)));
                }
                if removal == Removal::BeforeTransition
                    && let Err(error) = self.remove(cluster, id).await
                {
                    return self.handle_error(cluster, record, "remove", error).await;
                }
                let removed = removal == Removal::BeforeTransition;
                self.apply_event(cluster, record, observation, &event, removed)
                    .await
            }
            Plan::Transition(event) => {
                let removed = matches!(event, LifecycleEvent::Removed { .. });
                self.apply_event(cluster, record, observation, &event, removed)
                    .await
            }
            Plan::Remove => match self.remove(cluster, id).await {
                Ok(()) => {
                    self.store.mark_box_removed(&record).await?;
                    Ok(Next::Requeue(None))
                }
                Err(error) => self.handle_error(cluster, record, "remove", error).await,
            },
        }
    }

    async fn reserve_capacity(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
    ) -> Result<Next, ReconcileError> {
        let Some(capacity) = cluster.capacity.current() else {
            return Ok(Next::Requeue(Some(CAPACITY_RETRY)));
        };
        let allocatable = allocatable(&capacity, cluster.overcommit);
        match self.store.reserve_capacity(&record, allocatable).await? {
            Reservation::Reserved => {
                metrics::admitted(record.environment.created_at, Utc::now());
                let mut record = record;
                record.capacity_reserved = true;
                record.environment.status_message = None;
                Ok(Next::Continue(record, Observation::Unknown))
            }
            Reservation::Waiting(message) => {
                self.store.set_status_message(&record, &message).await?;
                Ok(Next::Requeue(Some(CAPACITY_RETRY)))
            }
        }
    }

    async fn observe(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
    ) -> Result<Next, ReconcileError> {
        let id = &record.environment.id;
        match call_runtime(cluster, "get", |runtime| runtime.get(id)).await {
            Ok(Some(observed)) => Ok(Next::Continue(record, Observation::Present(observed))),
            Ok(None) => Ok(Next::Continue(record, Observation::Absent)),
            Err(error) => self.handle_error(cluster, record, "observe", error).await,
        }
    }

    async fn stop(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        grace: Duration,
    ) -> Result<Next, ReconcileError> {
        tokio::join!(
            self.archive_executions(&record),
            metering::meter_before_stop(&self.store, &self.bus, &record.environment),
            execution_events::report_before_stop(&self.store, &self.bus, &record.environment),
        );
        let id = &record.environment.id;
        match call_runtime(cluster, "stop", |runtime| runtime.stop(id, grace)).await {
            Ok(()) => Ok(Next::Continue(record, Observation::Unknown)),
            Err(error) => self.handle_error(cluster, record, "stop", error).await,
        }
    }

    /// The spec of the box of `record`, with its variables and its login at the image's registry.
    async fn complete_spec(
        &self,
        cluster: &Cluster,
        record: &Record,
    ) -> Result<BoxSpec, ReconcileError> {
        let environment = self.store.open(record)?;
        let boxes = &self.settings.boxes;
        let mut spec = box_spec(&environment, record.quantities, cluster, boxes)?;
        let registry = canonical_registry(registry(&spec.image));
        spec.image_credential = self.store.credential(&spec.owner, &registry).await?;
        Ok(spec)
    }

    async fn ensure(&self, cluster: &Cluster, record: Box<Record>) -> Result<Next, ReconcileError> {
        let spec = self.complete_spec(cluster, &record).await?;
        let generation = record.environment.generation;
        let ensure = call_runtime(cluster, "ensure", |runtime| {
            runtime.ensure(&spec, generation)
        });
        match ensure.await {
            Ok(observed) => Ok(Next::Continue(record, Observation::Present(observed))),
            Err(RuntimeError::Fenced { .. }) => Err(StoreError::Fenced.into()),
            Err(error) => self.handle_error(cluster, record, "ensure", error).await,
        }
    }

    /// Applies a changed network policy. Its PATCH has usually done so already.
    async fn apply_network_policy(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        observation: Observation,
    ) -> Result<Next, ReconcileError> {
        let boxes = &self.settings.boxes;
        // The variables of the box are sealed in the record, and not needed here.
        let spec = box_spec(&record.environment, record.quantities, cluster, boxes)?;
        let generation = record.environment.generation;
        let applying = call_runtime(cluster, "apply_network_policy", |runtime| {
            runtime.apply_network_policy(&spec, generation)
        });
        match applying.await {
            Ok(_) => {
                let after = self.store.mark_network_policy_applied(&record).await?;
                tracing::info!(environment.id = %after.environment.id, "network policy applied");
                Ok(Next::Continue(Box::new(after), observation))
            }
            Err(RuntimeError::Fenced { .. }) => Err(StoreError::Fenced.into()),
            Err(error) => {
                self.handle_error(cluster, record, "apply_network_policy", error)
                    .await
            }
        }
    }

    /// Decides how to continue after an error of the cluster.
    async fn handle_error(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        step: &'static str,
        error: RuntimeError,
    ) -> Result<Next, ReconcileError> {
        metrics::step_failed(step);
        match plan_after_error(&record.intent(), &error, Utc::now()) {
            Plan::Transition(event) => {
                self.apply_event(cluster, record, Observation::Unknown, &event, false)
                    .await
            }
            Plan::RequeueAfter(after) if record.environment.status == Status::Pending => {
                tracing::info!(error = %ErrorChain(&error), environment.id = %record.environment.id, step, "step failed; retried");
                self.store
                    .set_status_message(&record, &error.user_message())
                    .await?;
                Ok(Next::Requeue(Some(after)))
            }
            _ => Err(ReconcileError::Runtime {
                cluster: cluster.name.clone(),
                source: error,
            }),
        }
    }

    /// Writes the transition of `event`. `removed`: the box is removed.
    async fn apply_event(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        observation: Observation,
        event: &LifecycleEvent,
        removed: bool,
    ) -> Result<Next, ReconcileError> {
        let now = Utc::now();
        let Some(state) = transition(now, &record.state(), event) else {
            // The plan and the states disagree: start again from the row.
            return Err(StoreError::Fenced.into());
        };
        let state_is_running = state.status == Status::Running;
        let mut change = Change::observed(&record, state);
        if let LifecycleEvent::Started { address, .. } = event
            && cluster.endpoint_is_address()
        {
            change.endpoint = Some(address.ip().to_string());
        }
        if matches!(record.claim, Some(WarmClaim::Pending { .. })) && state_is_running {
            change.queue = QueueAction::Due(RECORD_CLAIM_WITHIN);
        }
        if removed {
            change.box_removed = true;
            change.queue = QueueAction::Remove;
        }
        let after = self.store.change(&record, &change, now).await?;
        self.outbox.wake(&after.environment.id);
        let environment = &after.environment;
        metrics::transitioned(environment.status, environment.status_reason);
        if environment.status == Status::Running {
            let begun = match &observation {
                Observation::Present(observed) => Some(observed.created_at),
                Observation::Unknown | Observation::Absent => None,
            };
            let is_claimed = environment.pool.as_ref().is_some_and(|pool| pool.hit);
            metrics::started(environment.created_at, is_claimed, begun, now);
        }
        tracing::info!(
            environment.id = %environment.id,
            status = environment.status.as_str(),
            reason = environment.status_reason.map(|reason| reason.as_str()),
            status_message = environment.status_message,
            "environment status changed"
        );
        Ok(Next::Continue(Box::new(after), observation))
    }

    async fn remove(&self, cluster: &Cluster, id: &EnvironmentId) -> Result<(), RuntimeError> {
        call_runtime(cluster, "remove", |runtime| runtime.remove(id)).await
    }
}
