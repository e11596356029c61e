//! Carrying out a plan, step by step.

use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use agentbox_contracts::environment::Status;
use agentbox_contracts::exec::ArchiveRequest;
use agentbox_contracts::exec::rpc::ArchiveOutput;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, Runtime, RuntimeError};
use chrono::Utc;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Outcome, ReconcileError, Reconciler};
use crate::cluster::placement::room;
use crate::cluster::registry::Cluster;
use crate::environment::plan::{Archive, Plan, Removal, Sight, after_refusal, plan};
use crate::environment::record::Record;
use crate::environment::state::{Happening, transition};
use crate::environment::store::{Admission, Change, Drive, StoreError};
use crate::environment::{request, spec};
use crate::metrics;

/// More steps than any way through the states has: one that needs them goes in circles.
const MAX_STEPS: usize = 24;
const ARCHIVE_WITHIN: Duration = Duration::from_secs(5);
const ARCHIVE_RETRY: Duration = Duration::from_millis(500);
/// How soon a pending environment asks for room again.
const ROOM_RETRY: Duration = Duration::from_secs(1);

/// What a step leads to.
enum Next {
    /// Plan again, with this record and this sight.
    Go(Box<Record>, Sight),
    Rest(Option<Duration>),
}

/// One call of a cluster, traced and measured.
async fn call<T>(
    cluster: &Cluster,
    name: &'static str,
    work: impl Future<Output = Result<T, RuntimeError>>,
) -> Result<T, RuntimeError> {
    let span = tracing::info_span!(
        "runtime",
        otel.name = format!("{} {name}", cluster.driver),
        otel.kind = "client",
        cluster = cluster.name,
    );
    let begun = Instant::now();
    let outcome = work.instrument(span).await;
    metrics::runtime_called(&cluster.name, name, begun.elapsed());
    outcome
}

fn runtime_of(cluster: &Cluster) -> Result<&dyn Runtime, RuntimeError> {
    cluster
        .runtime()
        .map(AsRef::as_ref)
        .ok_or_else(|| RuntimeError::Unavailable("it is not connected yet".to_owned()))
}

impl Reconciler {
    pub(super) async fn steps(
        &self,
        id: &EnvironmentId,
        generation: &AtomicI64,
    ) -> Result<Outcome, ReconcileError> {
        let Some(record) = self.store.get(id).await? else {
            return Ok(Outcome::Rest(None));
        };
        let Some(cluster) = self.clusters.get(&record.environment.cluster).cloned() else {
            tracing::warn!(cluster = record.environment.cluster, environment = %id, "its cluster is not configured");
            return Ok(Outcome::Rest(Some(super::RETRY_AFTER)));
        };
        let (mut record, mut sight) = (Box::new(record), Sight::Unseen);
        for _ in 0..MAX_STEPS {
            generation.store(record.environment.generation, Ordering::Release);
            let step = plan(&record.intent(), &sight, Utc::now());
            tracing::debug!(environment = %id, ?step, "next");
            match self.step(&cluster, record, sight, step).await {
                Ok(Next::Go(next, seen)) => (record, sight) = (next, seen),
                Ok(Next::Rest(due)) => return Ok(Outcome::Rest(due)),
                Err(ReconcileError::Store(StoreError::Fenced)) => return Ok(Outcome::Again),
                Err(error) => return Err(error),
            }
        }
        tracing::error!(environment = %id, "its plan goes in circles");
        Ok(Outcome::Rest(Some(Duration::from_secs(30))))
    }

    async fn step(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        sight: Sight,
        step: Plan,
    ) -> Result<Next, ReconcileError> {
        let id = &record.environment.id.clone();
        match step {
            Plan::Nothing => Ok(Next::Rest(None)),
            Plan::Wait(after) => {
                if let Sight::Box(observed) = &sight
                    && let BoxPhase::Starting { message } = &observed.phase
                    && !message.is_empty()
                {
                    self.store.note(&record, message).await?;
                }
                Ok(Next::Rest(Some(after)))
            }
            Plan::Admit => self.admit(cluster, record).await,
            Plan::Look => {
                let looked = match runtime_of(cluster) {
                    Ok(runtime) => call(cluster, "get", runtime.get(id)).await,
                    Err(error) => Err(error),
                };
                match looked {
                    Ok(Some(observed)) => Ok(Next::Go(record, Sight::Box(observed))),
                    Ok(None) => Ok(Next::Go(record, Sight::Absent)),
                    Err(error) => self.refused(cluster, record, "look", error).await,
                }
            }
            Plan::Ensure => self.ensure(cluster, record).await,
            Plan::Stop { grace } => {
                let stopped = match runtime_of(cluster) {
                    Ok(runtime) => call(cluster, "stop", runtime.stop(id, grace)).await,
                    Err(error) => Err(error),
                };
                match stopped {
                    Ok(()) => Ok(Next::Go(record, Sight::Unseen)),
                    Err(error) => self.refused(cluster, record, "stop", error).await,
                }
            }
            Plan::Conclude {
                archive,
                removal,
                happening,
            } => {
                if !self.archived(&record, archive).await {
                    return Ok(Next::Rest(Some(ARCHIVE_RETRY)));
                }
                if removal == Removal::First
                    && let Err(error) = self.remove(cluster, id).await
                {
                    return self.refused(cluster, record, "remove", error).await;
                }
                let gone = removal == Removal::First;
                self.record(cluster, record, sight, &happening, gone).await
            }
            Plan::Record(happening) => {
                let gone = matches!(happening, Happening::Removed { .. });
                self.record(cluster, record, sight, &happening, gone).await
            }
            Plan::Remove => match self.remove(cluster, id).await {
                Ok(()) => {
                    self.store.removed(&record).await?;
                    Ok(Next::Rest(None))
                }
                Err(error) => self.refused(cluster, record, "remove", error).await,
            },
        }
    }

    async fn admit(&self, cluster: &Cluster, record: Box<Record>) -> Result<Next, ReconcileError> {
        let Some(capacity) = cluster.capacity.current() else {
            return Ok(Next::Rest(Some(ROOM_RETRY)));
        };
        let quantities =
            request::quantities(&record.environment.request).map_err(spec::SpecError::Request)?;
        let room = room(&capacity, cluster.overcommit);
        match self.store.admit(&record, quantities, room).await? {
            Admission::Admitted => {
                let mut record = record;
                record.admitted = true;
                record.environment.status_message = None;
                Ok(Next::Go(record, Sight::Unseen))
            }
            Admission::Waiting(message) => {
                self.store.note(&record, &message).await?;
                Ok(Next::Rest(Some(ROOM_RETRY)))
            }
        }
    }

    async fn ensure(&self, cluster: &Cluster, record: Box<Record>) -> Result<Next, ReconcileError> {
        let environment = &record.environment;
        let spec = spec::of_environment(environment, cluster, &self.settings.boxes)?;
        let made = match runtime_of(cluster) {
            Ok(runtime) => {
                call(
                    cluster,
                    "ensure",
                    runtime.ensure(&spec, environment.generation),
                )
                .await
            }
            Err(error) => Err(error),
        };
        match made {
            Ok(observed) => Ok(Next::Go(record, Sight::Box(observed))),
            Err(RuntimeError::Fenced { .. }) => Err(StoreError::Fenced.into()),
            Err(error) => self.refused(cluster, record, "ensure", error).await,
        }
    }

    /// The cluster did not do what it was asked.
    async fn refused(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        step: &'static str,
        error: RuntimeError,
    ) -> Result<Next, ReconcileError> {
        metrics::step_failed(step);
        match after_refusal(&record.intent(), &error, Utc::now()) {
            Plan::Record(happening) => {
                self.record(cluster, record, Sight::Unseen, &happening, false)
                    .await
            }
            Plan::Wait(after) if record.environment.status == Status::Pending => {
                tracing::info!(%error, environment = %record.environment.id, step, "tried again");
                self.store.note(&record, &error.to_string()).await?;
                Ok(Next::Rest(Some(after)))
            }
            _ => Err(ReconcileError::Runtime {
                cluster: cluster.name.clone(),
                source: error,
            }),
        }
    }

    /// Writes a transition. `gone`: nothing is left of the box.
    async fn record(
        &self,
        cluster: &Cluster,
        record: Box<Record>,
        sight: Sight,
        happening: &Happening,
        gone: bool,
    ) -> Result<Next, ReconcileError> {
        let now = Utc::now();
        let Some(standing) = transition(now, &record.standing(), happening) else {
            // The plan and the states disagree: look at what is true.
            return Err(StoreError::Fenced.into());
        };
        let mut change = Change::observed(&record, standing);
        if let Happening::Started { address, .. } = happening
            && cluster.endpoint_is_address()
        {
            change.endpoint = Some(address.ip().to_string());
        }
        if gone {
            change.box_removed = true;
            change.drive = Drive::Done;
        }
        let after = self.store.change(&record, &change, now).await?;
        self.outbox.wake(&after.environment.id);
        let environment = &after.environment;
        metrics::arrived(environment.status, environment.status_reason);
        if environment.status == Status::Running {
            metrics::started((now - environment.created_at).to_std().unwrap_or_default());
        }
        tracing::info!(
            environment = %environment.id,
            status = environment.status.as_str(),
            reason = environment.status_reason.map(|reason| reason.as_str()),
            why = environment.status_message,
            "arrived"
        );
        Ok(Next::Go(Box::new(after), sight))
    }

    async fn remove(&self, cluster: &Cluster, id: &EnvironmentId) -> Result<(), RuntimeError> {
        call(cluster, "remove", runtime_of(cluster)?.remove(id)).await
    }

    /// Whether the end may go on: the last output is stored, or nobody waits for it any
    /// longer.
    async fn archived(&self, record: &Record, archive: Archive) -> bool {
        let Archive::Until(until) = archive else {
            return true;
        };
        let environment = &record.environment;
        let request = ArchiveRequest {
            environment: environment.id.clone(),
            address: environment.address,
        };
        let stored = self
            .bus
            .call_cluster::<ArchiveOutput>(&environment.cluster, &request, ARCHIVE_WITHIN)
            .await;
        let Err(error) = stored else { return true };
        metrics::step_failed("archive");
        if Utc::now() < until {
            tracing::info!(%error, environment = %environment.id, "its last output is not stored yet");
            return false;
        }
        metrics::archive_given_up();
        tracing::error!(%error, environment = %environment.id, "it ends without its last output stored");
        true
    }
}
