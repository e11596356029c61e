//! Starts, observes and removes the boxes of warm pools, each when its row is due. Every replica does
//! so for the clusters that it reaches; each box is taken by one of them.
//!
//! * I1. A box is ready once its cluster has reported that it runs, and is claimed only while such a
//!   report is recent. A box that was killed is therefore found before, or by its claim.
//! * I2. A box that does not start, or no longer runs, is removed and not repaired. So is one whose image
//!   cannot be pulled, also if a later pull may succeed: the pool's back-off bounds how often a registry is
//!   asked.

use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::rpc::CreateRequest;
use agentbox_contracts::limits::UserLimits;
use agentbox_contracts::pool::{PoolSpec, operator};
use agentbox_runtime::{BoxPhase, BoxSpec, IMAGE_PULL, RuntimeError};
use chrono::Utc;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::cluster::registry::Cluster;
use crate::config::Settings;
use crate::environment::creation::Creation;
use crate::environment::reconcile::call_runtime;
use crate::environment::spec::box_spec;
use crate::environment::store::{Store, StoreError, WARM_BOX_LEASE, WarmBox, WarmStatus, WarmWork};
use crate::environment::warm_claim::WARM_GENERATION;
use crate::metrics;
use crate::pool::request::environment_request;

const POLL_INTERVAL: Duration = Duration::from_millis(250);
const BATCH: u32 = 64;
/// Boxes of one cluster that one replica observes at a time, and beside them those that it starts and
/// removes.
const CONCURRENCY: usize = 16;
/// The pause before a box that starts is asked for again.
const START_RETRY: Duration = Duration::from_secs(1);
/// The pause after an error of the cluster.
const ERROR_RETRY: Duration = Duration::from_secs(2);

/// The name of the operator in the place of a user's name.
const OPERATOR: &str = "operator";

/// The boxes of one cluster.
#[derive(Clone)]
pub struct WarmBoxes {
    store: Store,
    cluster: Arc<Cluster>,
    settings: Settings,
}

/// The request that a box of a pool answers, by the operator.
#[must_use]
pub fn create_request(pool: &PoolSpec) -> CreateRequest {
    CreateRequest {
        owner: operator(),
        owner_username: OPERATOR.to_owned(),
        request: environment_request(pool),
        idempotency_key: None,
        limits: UserLimits::default(),
    }
}

impl WarmBoxes {
    #[must_use]
    pub fn new(store: Store, cluster: Arc<Cluster>, settings: Settings) -> Self {
        Self {
            store,
            cluster,
            settings,
        }
    }

    /// Works on the due boxes until `shutdown`, which interrupts the work on each.
    pub async fn run_due(self, shutdown: CancellationToken) {
        tokio::join!(
            self.run(WarmWork::Observe, shutdown.clone()),
            self.run(WarmWork::StartOrRemove, shutdown),
        );
    }

    async fn run(&self, work: WarmWork, shutdown: CancellationToken) {
        let stopped = shutdown.clone();
        let source = (self.clone(), shutdown);
        let due = futures::stream::unfold(source, move |(boxes, shutdown)| async move {
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return None,
                    () = tokio::time::sleep(POLL_INTERVAL) => {}
                }
                match boxes
                    .store
                    .take_due_warm_boxes(&boxes.cluster.name, work, BATCH)
                    .await
                {
                    Ok(due) if due.is_empty() => {}
                    Ok(due) => return Some((due, (boxes, shutdown))),
                    Err(error) => {
                        tracing::warn!(error = %ErrorChain(&error), cluster = boxes.cluster.name, "due warm boxes not read");
                    }
                }
            }
        });
        due.map(futures::stream::iter)
            .flatten()
            .for_each_concurrent(CONCURRENCY, |warm| {
                let span = tracing::info_span!(parent: None, "warm_box", otel.name = "reconcile warm box", environment.id = %warm.id, pool = warm.pool);
                let stopped = &stopped;
                async move {
                    let reconciled = stopped.run_until_cancelled(self.reconcile(&warm)).await;
                    let outcome = match reconciled {
                        Some(outcome) => outcome,
                        // Due at once, for another replica.
                        None => self.store.postpone_warm_box(&warm.id, Duration::ZERO).await,
                    };
                    if let Err(error) = outcome {
                        tracing::warn!(error = %ErrorChain(&error), environment.id = %warm.id, pool = warm.pool, "warm box not reconciled; it stays due");
                    }
                }
                .instrument(span)
            })
            .await;
    }

    async fn reconcile(&self, warm: &WarmBox) -> Result<(), StoreError> {
        match warm.status {
            WarmStatus::Starting => self.leased(warm, self.start(warm)).await,
            WarmStatus::Ready => self.observe(warm).await,
            WarmStatus::Draining => self.leased(warm, self.remove(warm)).await,
        }
    }

    /// Renews the lease of the box during `work`, which may pull an image.
    async fn leased(
        &self,
        warm: &WarmBox,
        work: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                () = tokio::time::sleep(WARM_BOX_LEASE / 3) => {}
            }
            if let Err(error) = self.store.renew_warm_box(warm).await {
                tracing::warn!(error = %ErrorChain(&error), environment.id = %warm.id, pool = warm.pool, "lease of a warm box not renewed");
            }
        }
    }

    async fn start(&self, warm: &WarmBox) -> Result<(), StoreError> {
        let spec = match self.warm_spec(warm) {
            Ok(spec) => spec,
            Err(message) => return self.give_up(warm, &message).await,
        };
        let ensure = call_runtime(&self.cluster, "ensure", |runtime| {
            runtime.ensure(&spec, WARM_GENERATION)
        });
        let message = match ensure.await {
            Ok(observed) => match observed.phase {
                BoxPhase::Running { address, .. } => {
                    let digest = self.image_digest(warm).await;
                    let digest = digest.as_deref();
                    let is_root = self.is_root(warm).await;
                    let store = &self.store;
                    let marking = store.mark_warm_box_ready(&warm.id, address, digest, is_root);
                    if marking.await? {
                        store.pool_started(&warm.pool, warm.revision).await?;
                        tracing::info!(environment.id = %warm.id, pool = warm.pool, "warm box ready");
                    }
                    return Ok(());
                }
                BoxPhase::Starting { message } => {
                    if !self.is_late(warm) {
                        return self.store.postpone_warm_box(&warm.id, START_RETRY).await;
                    }
                    format!("a box did not start within the start timeout: {message}")
                }
                BoxPhase::Failed { message, .. } => message,
                BoxPhase::Exited { message, .. } => {
                    format!("a box ended before it was ready: {message}")
                }
            },
            // An environment has claimed it.
            Err(RuntimeError::Fenced { .. }) => return Ok(()),
            Err(
                error @ RuntimeError::Cluster {
                    operation: IMAGE_PULL,
                    ..
                },
            ) => error.user_message(),
            Err(error) => {
                let message = error.user_message();
                tracing::info!(error = %ErrorChain(&error), environment.id = %warm.id, pool = warm.pool, "warm box not started; retried");
                if !self.is_late(warm) {
                    self.fail(warm, &message).await?;
                    return self.store.postpone_warm_box(&warm.id, ERROR_RETRY).await;
                }
                message
            }
        };
        self.give_up(warm, &message).await
    }

    async fn observe(&self, warm: &WarmBox) -> Result<(), StoreError> {
        let observing = call_runtime(&self.cluster, "get", |runtime| runtime.get(&warm.id));
        match observing.await {
            Ok(Some(observed)) if matches!(observed.phase, BoxPhase::Running { .. }) => {
                self.store.mark_warm_box_seen(&warm.id).await
            }
            Ok(_) => {
                if self.drain(warm).await? {
                    tracing::warn!(environment.id = %warm.id, pool = warm.pool, "warm box no longer runs; replaced");
                }
                Ok(())
            }
            Err(error) => {
                tracing::info!(error = %ErrorChain(&error), environment.id = %warm.id, pool = warm.pool, "warm box not observed; retried");
                self.store.postpone_warm_box(&warm.id, ERROR_RETRY).await
            }
        }
    }

    async fn remove(&self, warm: &WarmBox) -> Result<(), StoreError> {
        let removing = call_runtime(&self.cluster, "remove", |runtime| runtime.remove(&warm.id));
        match removing.await {
            Ok(()) => self.store.delete_warm_box(&warm.id).await,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), environment.id = %warm.id, pool = warm.pool, "warm box not removed; retried");
                self.store.postpone_warm_box(&warm.id, ERROR_RETRY).await
            }
        }
    }

    /// Lets the box be removed. False: it is not in the pool any more.
    async fn drain(&self, warm: &WarmBox) -> Result<bool, StoreError> {
        let drained = self.store.drain_warm_boxes(std::slice::from_ref(&warm.id));
        Ok(drained.await? > 0)
    }

    /// Reports a start that failed, which postpones the next one.
    async fn fail(&self, warm: &WarmBox, message: &str) -> Result<(), StoreError> {
        metrics::pool_start_failed(&warm.pool);
        self.store
            .pool_start_failed(&warm.pool, warm.revision, message)
            .await
    }

    /// Reports a box that will never be ready, and lets it be removed.
    async fn give_up(&self, warm: &WarmBox, message: &str) -> Result<(), StoreError> {
        tracing::warn!(environment.id = %warm.id, pool = warm.pool, reason = message, "warm box not started");
        self.fail(warm, message).await?;
        self.drain(warm).await?;
        Ok(())
    }

    fn is_late(&self, warm: &WarmBox) -> bool {
        let age = (Utc::now() - warm.created_at).to_std().unwrap_or_default();
        age >= self.settings.start_timeout
    }

    /// The spec of the box; the problem, for operators, when it cannot be built any more.
    fn warm_spec(&self, warm: &WarmBox) -> Result<BoxSpec, String> {
        let start_timeout = self.settings.start_timeout;
        let request = create_request(&warm.spec);
        let creation = Creation::new(warm.id.clone(), request, start_timeout, Utc::now())
            .map_err(|error| error.message)?;
        let boxes = &self.settings.boxes;
        let spec = box_spec(
            &creation.environment,
            creation.quantities,
            &self.cluster,
            boxes,
        );
        spec.map(|spec| BoxSpec { warm: true, ..spec })
            .map_err(|error| ErrorChain(&error).to_string())
    }

    /// Whether the box's boxd is known to be root.
    async fn is_root(&self, warm: &WarmBox) -> bool {
        let isolation = warm.spec.isolation.as_ref();
        let context = isolation.and_then(|isolation| isolation.security_context.as_ref());
        if let Some(user) = context.and_then(|context| context.run_as_user) {
            return user == 0;
        }
        let image = &warm.spec.image;
        call_runtime(&self.cluster, "image_is_of_root", |runtime| {
            runtime.image_is_of_root(image)
        })
        .await
        .unwrap_or_else(|error| {
            tracing::info!(error = %ErrorChain(&error), pool = warm.pool, "user of a pool's image not read");
            false
        })
    }

    /// The digest of the image that the box runs, if the cluster reports it.
    async fn image_digest(&self, warm: &WarmBox) -> Option<String> {
        let image = &warm.spec.image;
        call_runtime(&self.cluster, "image_digest", |runtime| {
            runtime.image_digest(image)
        })
        .await
        .unwrap_or_else(|error| {
            tracing::info!(error = %ErrorChain(&error), pool = warm.pool, "digest of a pool's image not read");
            None
        })
    }
}
