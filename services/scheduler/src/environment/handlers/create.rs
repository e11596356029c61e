//! Creating an environment: validate, claim a warm box or choose a cluster, write, publish.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::rpc::CreateRequest;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::EnvironmentId;
use chrono::{SubsecRound as _, Utc};

use super::Environments;
use crate::cluster::placement::{
    Candidate, allocatable, allowing_image, rank, retryable_if_unreachable,
};
use crate::cluster::registry::no_reachable_cluster;
use crate::cluster::scheduling::{every_cluster_cordoned, retryable_if_cordoned};
use crate::environment::creation::Creation;
use crate::environment::request::{self, Quantities};
use crate::environment::spec::box_spec;
use crate::metrics;

const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request that no reachable cluster accepts waits for an unreachable one.
const UNREACHABLE_WAIT: Duration = Duration::from_secs(2);

impl Environments {
    /// Creates an environment: in a warm box that matches, or in the first cluster that accepts it.
    ///
    /// # Errors
    /// `Validation`, `QuotaExceeded`, `IdempotencyConflict`; `Unavailable` when no
    /// cluster can be reached, or the database cannot.
    pub async fn create(&self, request: CreateRequest) -> Result<Environment, Error> {
        let inner = self.inner();
        // The precision of Postgres, so that every answer has the same time.
        let now = Utc::now().trunc_subsecs(6);
        let id = EnvironmentId::random();
        let quota = inner.settings.quota.with(&request.limits);
        let mut creation = Creation::new(id, request, inner.settings.start_timeout, now)?;
        creation.quota = quota;
        let quantities = creation.quantities;
        request::storage(quantities, inner.settings.max_storage)?;
        // A repeated request is answered even when no cluster would accept a new one.
        if let Some(replayed) = inner.store.replay(&creation).await? {
            return self.reply(&replayed);
        }
        if let Some(claimed) = self.claim(&mut creation).await? {
            return self.reply(&claimed);
        }
        let environment = &creation.environment;
        let chosen = match self.choose_cluster(environment, quantities, None).await {
            Err(refusal) if refusal.code == ErrorCode::Unavailable => {
                inner.clusters.wait_for_unreachable(UNREACHABLE_WAIT).await;
                self.choose_cluster(environment, quantities, None).await?
            }
            outcome => outcome?,
        };
        if let Some(cluster) = inner.clusters.get(&chosen.name) {
            creation.allocatable = allocatable(&chosen.capacity, cluster.overcommit);
        }
        creation.environment.cluster = chosen.name;
        let created = inner.store.create(&creation).await?;
        inner.outbox.wake(&created.environment.id);
        metrics::transitioned(Status::Pending, None);
        if created.capacity_reserved {
            metrics::admitted(created.environment.created_at, Utc::now());
        }
        if let Some(pool) = &created.environment.pool {
            metrics::pool_requested(pool);
        }
        tracing::info!(
            environment.id = %created.environment.id,
            cluster = created.environment.cluster,
            "environment created"
        );
        self.reply(&created)
    }

    /// Chooses the reachable cluster that runs `environment`; with `only`, none but this one.
    pub(crate) async fn choose_cluster(
        &self,
        environment: &Environment,
        quantities: Quantities,
        only: Option<&str>,
    ) -> Result<Candidate, Error> {
        let mut candidates = Vec::new();
        let mut unreachable = Vec::new();
        let mut cordoned = Vec::new();
        let clusters = self.inner().clusters.iter();
        for cluster in clusters.filter(|cluster| only.is_none_or(|only| cluster.name == only)) {
            if !cluster.scheduling().is_active() {
                if cluster.registries.allow(&environment.request.image) {
                    cordoned.push((cluster.name.as_str(), &cluster.labels));
                }
                continue;
            }
            // A cluster without a schedulable node counts as unreachable.
            let capacity = cluster
                .capacity
                .current()
                .filter(|capacity| capacity.nodes > 0);
            match capacity {
                Some(capacity) if cluster.runtime().is_some() => candidates.push(Candidate {
                    name: cluster.name.clone(),
                    labels: cluster.labels.clone(),
                    registries: cluster.registries.clone(),
                    capacity,
                }),
                _ if cluster.registries.allow(&environment.request.image) => {
                    unreachable.push((cluster.name.as_str(), &cluster.labels));
                }
                _ => {}
            }
        }
        if candidates.is_empty() {
            return Err(if cordoned.is_empty() || !unreachable.is_empty() {
                no_reachable_cluster()
            } else {
                every_cluster_cordoned()
            });
        }
        let selector = &environment.request.node_selector;
        self.first_feasible(environment, quantities, candidates)
            .await
            .map_err(|refusal| retryable_if_unreachable(refusal, selector, unreachable))
            .map_err(|refusal| retryable_if_cordoned(refusal, selector, cordoned))
    }

    /// Returns the first cluster of the ranking whose preflight accepts `environment`.
    async fn first_feasible(
        &self,
        environment: &Environment,
        quantities: Quantities,
        candidates: Vec<Candidate>,
    ) -> Result<Candidate, Error> {
        let inner = self.inner();
        let selector = &environment.request.node_selector;
        let candidates = allowing_image(&environment.request.image, selector, candidates)?;
        let mut refusal = None;
        for candidate in rank(selector, quantities, candidates)? {
            let Some((cluster, runtime)) = inner
                .clusters
                .get(&candidate.name)
                .and_then(|cluster| Some((cluster, cluster.runtime()?)))
            else {
                continue;
            };
            let spec = box_spec(environment, quantities, cluster, &inner.settings.boxes).map_err(
                |error| {
                    tracing::error!(error = %ErrorChain(&error), "box spec not built");
                    Error::internal()
                },
            )?;
            match tokio::time::timeout(PREFLIGHT_TIMEOUT, runtime.preflight(&spec)).await {
                Ok(Ok(())) => return Ok(candidate),
                Ok(Err(error)) => {
                    refusal.get_or_insert(Error::field(error.field, error.message));
                }
                Err(_) => {
                    refusal.get_or_insert(Error::new(
                        ErrorCode::Unavailable,
                        format!("cluster `{}` does not answer; try again", cluster.name),
                    ));
                }
            }
        }
        Err(refusal.unwrap_or_else(no_reachable_cluster))
    }
}
