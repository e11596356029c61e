//! Decides which boxes each pool starts and removes. One replica does so, the holder of a lease.
//!
//! It takes no input: a change of a pool, a claim and a lost box are found in the database. A replica
//! that is killed leaves rows, which another one continues.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::EnvironmentId;
use chrono::Utc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::placement::allocatable;
use crate::cluster::registry::Clusters;
use crate::config::Settings;
use crate::environment::creation::Creation;
use crate::environment::handlers::Environments;
use crate::environment::reconcile::call_runtime;
use crate::environment::store::{PoolRow, Reservation, Store, StoreError, WarmBox, WarmStatus};
use crate::metrics::{self, PoolSize};
use crate::pool::boxes::create_request;
use crate::pool::sizing::{Digests, resize};

/// The pause between two reconciles.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a pool that was complete lacks boxes before it starts others. Starts take the processors and the disk
/// that claims need, and claims often come together.
const REFILL_AFTER: Duration = Duration::from_secs(2);
/// How often the digests of the images are read, and the requests counted.
const SLOW_INTERVAL: Duration = Duration::from_secs(30);
/// How long a cluster may take to tell the digest of one image.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps every pool at its size.
pub struct PoolReconciler {
    store: Store,
    clusters: Clusters,
    environments: Environments,
    settings: Settings,
}

/// What one reconcile knows from those before it.
#[derive(Default)]
struct Known {
    /// The digests of the pools' images, which are read less often than the pools.
    digests: BTreeMap<String, Digests>,
    digests_read_at: Option<Instant>,
    /// When each pool was last complete. None of one that is filled for the first time.
    complete_at: BTreeMap<String, Instant>,
}

impl Known {
    /// Whether `pool`, which lacks boxes, starts them now.
    fn is_refill_due(&self, pool: &str) -> bool {
        let complete_at = self.complete_at.get(pool);
        complete_at.is_none_or(|at| at.elapsed() >= REFILL_AFTER)
    }
}

impl PoolReconciler {
    #[must_use]
    pub fn new(clusters: Clusters, environments: Environments, settings: Settings) -> Self {
        Self {
            store: environments.store().clone(),
            clusters,
            environments,
            settings,
        }
    }

    /// Reconciles until `held` is cancelled.
    pub async fn run(&self, held: CancellationToken) {
        let mut known = Known::default();
        while !held.is_cancelled() {
            if let Err(error) = self.reconcile(&mut known).await {
                tracing::warn!(error = %ErrorChain(&error), "warm pools not reconciled; retried");
            }
            tokio::select! {
                () = held.cancelled() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
        metrics::pools(&[]);
    }

    async fn reconcile(&self, known: &mut Known) -> Result<(), StoreError> {
        // The boxes first: when a box that did not start is gone, the pause after its failure is known.
        let boxes = self.store.warm_boxes().await?;
        let pools = self.store.pools().await?;
        if known
            .digests_read_at
            .is_none_or(|at| at.elapsed() >= SLOW_INTERVAL)
        {
            known.digests_read_at = Some(Instant::now());
            self.store.count_pool_requests().await?;
            known.digests = self.read_digests(&pools, &boxes).await;
        }
        let (mut drain, mut sizes) = (Vec::new(), Vec::new());
        let mut by_pool: BTreeMap<&str, Vec<WarmBox>> = BTreeMap::new();
        for warm in &boxes {
            let mut kept = warm.clone();
            if self.is_cordoned(&warm.cluster) && warm.status != WarmStatus::Draining {
                drain.push(warm.id.clone());
                kept.status = WarmStatus::Draining;
            }
            by_pool.entry(&warm.pool).or_default().push(kept);
        }
        for pool in &pools {
            let boxes = by_pool.remove(pool.name.as_str()).unwrap_or_default();
            drain.extend(self.resize_pool(pool, &boxes, known, &mut sizes).await?);
        }
        metrics::pools(&sizes);
        let names: BTreeSet<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
        known
            .complete_at
            .retain(|name, _| names.contains(name.as_str()));
        // The boxes of deleted pools.
        drain.extend(
            by_pool
                .into_values()
                .flatten()
                .filter(|warm| warm.status != WarmStatus::Draining)
                .map(|warm| warm.id),
        );
        if !drain.is_empty() {
            let boxes = self.store.drain_warm_boxes(&drain).await?;
            tracing::info!(boxes, "warm boxes drained");
        }
        Ok(())
    }

    /// Whether an operator lets the cluster take no new environments: its boxes cannot be claimed, and
    /// those of other clusters take their place.
    fn is_cordoned(&self, cluster: &str) -> bool {
        let cluster = self.clusters.get(cluster);
        cluster.is_some_and(|cluster| !cluster.scheduling().is_active())
    }

    /// Starts the boxes that `pool` lacks; returns those to be removed, and adds its size to `sizes`.
    async fn resize_pool(
        &self,
        pool: &PoolRow,
        boxes: &[WarmBox],
        known: &mut Known,
        sizes: &mut Vec<PoolSize>,
    ) -> Result<Vec<EnvironmentId>, StoreError> {
        let demand = self.store.pool_demand(&pool.name).await?;
        let unknown = Digests::new();
        let digests = known.digests.get(&pool.name).unwrap_or(&unknown);
        let max_age = self.settings.pool_box_max_age;
        let size = resize(pool, boxes, &demand, digests, max_age, Utc::now());
        self.store.set_pool_target(pool, size.target).await?;
        sizes.push(pool_size(pool, boxes, size.target));
        if size.is_complete {
            known.complete_at.insert(pool.name.clone(), Instant::now());
        } else if !known.is_refill_due(&pool.name) {
            return Ok(size.drain);
        }
        for _ in 0..size.start {
            if let Err(error) = self.start_box(pool).await? {
                tracing::warn!(error = %ErrorChain(&error), pool = pool.name, "warm box not started; retried");
                metrics::pool_start_failed(&pool.name);
                self.store
                    .pool_start_failed(&pool.name, pool.revision, &error.message)
                    .await?;
                break;
            }
        }
        Ok(size.drain)
    }

    /// Adds a box to `pool` in the cluster that an environment of it would get. The inner error: why
    /// there is no place for it.
    async fn start_box(&self, pool: &PoolRow) -> Result<Result<(), Error>, StoreError> {
        let id = EnvironmentId::random();
        let request = create_request(&pool.spec);
        let creation = match Creation::new(id, request, self.settings.start_timeout, Utc::now()) {
            Ok(creation) => creation,
            Err(error) => return Ok(Err(error)),
        };
        let (environment, quantities) = (&creation.environment, creation.quantities);
        let only = pool.spec.cluster.as_deref();
        let chosen = match self
            .environments
            .choose_cluster(environment, quantities, only)
            .await
        {
            Ok(chosen) => chosen,
            Err(error) => return Ok(Err(error)),
        };
        let Some(cluster) = self.clusters.get(&chosen.name) else {
            return Ok(Err(Error::internal()));
        };
        let allocatable = allocatable(&chosen.capacity, cluster.overcommit);
        let added = self
            .store
            .add_warm_box(&environment.id, pool, &chosen.name, quantities, allocatable)
            .await?;
        Ok(match added {
            Reservation::Reserved => Ok(()),
            Reservation::Waiting(message) => Err(Error::new(ErrorCode::Unavailable, message)),
        })
    }

    /// The digests of the pools' images, on the clusters that have boxes of them.
    async fn read_digests(
        &self,
        pools: &[PoolRow],
        boxes: &[WarmBox],
    ) -> BTreeMap<String, Digests> {
        let mut digests: BTreeMap<String, Digests> = BTreeMap::new();
        for pool in pools {
            let clusters: BTreeSet<&str> = boxes
                .iter()
                .filter(|warm| warm.pool == pool.name)
                .map(|warm| warm.cluster.as_str())
                .collect();
            for name in clusters {
                let Some(cluster) = self.clusters.get(name) else {
                    continue;
                };
                let image = &pool.spec.image;
                let reading = call_runtime(cluster, "image_digest", |runtime| {
                    runtime.image_digest(image)
                });
                // A digest that cannot be read now is read the next time.
                if let Ok(Ok(Some(digest))) = tokio::time::timeout(DIGEST_TIMEOUT, reading).await {
                    let of_pool = digests.entry(pool.name.clone()).or_default();
                    of_pool.insert(name.to_owned(), digest);
                }
            }
        }
        digests
    }
}

fn pool_size(pool: &PoolRow, boxes: &[WarmBox], target: u32) -> PoolSize {
    let boxes = [
        (WarmStatus::Starting, "starting"),
        (WarmStatus::Ready, "ready"),
        (WarmStatus::Draining, "draining"),
    ]
    .map(|(status, name)| {
        let count = boxes.iter().filter(|warm| warm.status == status).count();
        (name, u32::try_from(count).unwrap_or(u32::MAX))
    });
    PoolSize {
        pool: pool.name.clone(),
        boxes,
        target,
    }
}
