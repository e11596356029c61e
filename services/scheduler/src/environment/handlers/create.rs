//! Creating an environment: validate, place, store, tell.

use std::time::Duration;

use agentbox_contracts::environment::rpc::CreateRequest;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::EnvironmentId;
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};

use super::Environments;
use crate::cluster::placement::{Candidate, rank, room, unless_away};
use crate::cluster::registry::no_cluster;
use crate::environment::request::{self, Quantities};
use crate::environment::spec::{self, SpecError};
use crate::environment::store::Creation;
use crate::metrics;

const PREFLIGHT_WITHIN: Duration = Duration::from_secs(2);
/// So long a request waits for a cluster that is away, when no other takes it.
const AWAY_AT_MOST: Duration = Duration::from_secs(2);

fn after(begin: DateTime<Utc>, duration: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(duration)
        .ok()
        .and_then(|delta| begin.checked_add_signed(delta))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

impl Environments {
    /// # Errors
    /// `Validation`, `QuotaExceeded`, `IdempotencyConflict`; `Unavailable` when neither a
    /// cluster nor the database can be reached.
    pub async fn create(&self, request: CreateRequest) -> Result<Environment, Error> {
        let quantities = request::validate(&request.request)?;
        let id = EnvironmentId::random();
        // As precise as Postgres keeps it, so that every answer says the same.
        let now = Utc::now().trunc_subsecs(6);
        let lifetime = Duration::from_secs(request.request.timeout_s);
        let environment = Environment {
            endpoint: spec::endpoint_name(&id),
            namespace: spec::namespace(&id),
            id,
            owner: request.owner,
            owner_username: request.owner_username,
            cluster: String::new(),
            request: request.request,
            status: Status::Pending,
            status_reason: None,
            status_message: None,
            created_at: now,
            started_at: None,
            ended_at: None,
            expires_at: after(now, lifetime),
            exit_code: None,
            address: None,
            generation: 1,
        };
        let inner = self.inner();
        let mut creation = Creation {
            environment,
            quantities,
            room: crate::cluster::placement::Room {
                cpu: agentbox_contracts::units::MilliCpu(u64::MAX),
                memory: agentbox_contracts::units::Bytes(u64::MAX),
            },
            quota: inner.settings.quota,
            start_deadline: after(now, inner.settings.start_timeout),
            idempotency_key: request.idempotency_key,
        };
        // A repeated request is answered even when no cluster could take a new one.
        if let Some(replayed) = inner.store.replay(&creation).await? {
            return Ok(replayed.environment);
        }
        let chosen = match self.place(&creation.environment, quantities).await {
            Err(refusal) if refusal.code == ErrorCode::Unavailable => {
                inner.clusters.wait_for_another(AWAY_AT_MOST).await;
                self.place(&creation.environment, quantities).await?
            }
            outcome => outcome?,
        };
        if let Some(cluster) = inner.clusters.get(&chosen.name) {
            creation.room = room(&chosen.capacity, cluster.overcommit);
        }
        creation.environment.cluster = chosen.name;
        let created = inner.store.create(&creation).await?;
        inner.outbox.wake(&created.environment.id);
        metrics::arrived(Status::Pending, None);
        tracing::info!(
            environment = %created.environment.id,
            cluster = created.environment.cluster,
            "created"
        );
        Ok(created.environment)
    }

    /// The cluster for it, of those that are there.
    async fn place(
        &self,
        environment: &Environment,
        quantities: Quantities,
    ) -> Result<Candidate, Error> {
        let mut candidates = Vec::new();
        let mut away = Vec::new();
        for cluster in self.inner().clusters.iter() {
            // One whose nodes are all closed or silent takes nothing either.
            let capacity = cluster.capacity.current().filter(|has| has.nodes > 0);
            match capacity {
                Some(capacity) if cluster.runtime().is_some() => candidates.push(Candidate {
                    name: cluster.name.clone(),
                    labels: cluster.labels.clone(),
                    capacity,
                }),
                _ => away.push((cluster.name.as_str(), &cluster.labels)),
            }
        }
        if candidates.is_empty() {
            return Err(no_cluster());
        }
        self.first_that_takes(environment, quantities, candidates)
            .await
            .map_err(|refusal| unless_away(refusal, &environment.request.node_selector, away))
    }

    /// The first cluster of the ranking that could ever run it.
    async fn first_that_takes(
        &self,
        environment: &Environment,
        quantities: Quantities,
        candidates: Vec<Candidate>,
    ) -> Result<Candidate, Error> {
        let inner = self.inner();
        let mut refusal = None;
        for candidate in rank(&environment.request.node_selector, quantities, candidates)? {
            let Some((cluster, runtime)) = inner
                .clusters
                .get(&candidate.name)
                .and_then(|cluster| Some((cluster, cluster.runtime()?)))
            else {
                continue;
            };
            let spec = spec::of_environment(environment, cluster, &inner.settings.boxes).map_err(
                |error| match error {
                    SpecError::Request(error) => error,
                    error => {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "no box can be specified"
                        );
                        Error::internal()
                    }
                },
            )?;
            match tokio::time::timeout(PREFLIGHT_WITHIN, runtime.preflight(&spec)).await {
                Ok(Ok(())) => return Ok(candidate),
                Ok(Err(error)) => {
                    refusal.get_or_insert(Error::field(error.field, error.message));
                }
                Err(_) => {
                    refusal.get_or_insert(Error::new(
                        ErrorCode::Unavailable,
                        "the cluster does not answer; try again",
                    ));
                }
            }
        }
        Err(refusal.unwrap_or_else(no_cluster))
    }
}
