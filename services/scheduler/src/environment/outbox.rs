//! Publishes the outbox: commands, events, routes and audit entries.
//!
//! * I1. The rows of one environment are published in order, by one publisher at a time (a
//!   claim that expires); environments do not wait for each other.
//! * I2. A publisher does not begin a row near the end of its claim: it must finish the row
//!   before another publisher can claim it.
//! * I3. No transaction, lock or connection is held while the bus answers.
//! * I4. Each row is published at least once, and stored by JetStream once: the `Nats-Msg-Id`
//!   has the row's id. A publisher that is killed before it marks a row causes a duplicate, which
//!   JetStream drops.
//! * I5. The replica that wrote a row publishes it at once. Any replica finds a row that a
//!   killed replica left, or that the bus refused, within half a second. A row that a killed
//!   replica had claimed is found when the claim expires.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentbox_bus::{Bus, BusError, publish_span};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::environment::store::{
    ClaimAction, OUTBOX_LEASE, OutboxMessage, OutboxRow, Store, StoreError,
};
use crate::{metrics, trace};

/// Environments in this replica's queue; the sweep finds those that do not fit.
const QUEUE: usize = 4096;
/// Environments that are published at a time.
const CONCURRENCY: usize = 8;
/// How often rows are looked for that no replica has published.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// The most environments of one sweep.
const SWEEP_LIMIT: u32 = 256;
/// Environments of a sweep that are published at a time.
const SWEEP_CONCURRENCY: usize = 2;
/// How long the bus may take to store one row.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);
/// A command only wakes a reconciler: one that is lost is replaced by the reconcile queue.
const COMMAND_TTL: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("the bus did not answer within {PUBLISH_TIMEOUT:?}")]
    Deadline,
}

/// Passes environments with new rows to this replica's publisher.
#[derive(Clone)]
pub struct Outbox {
    wakes: mpsc::Sender<EnvironmentId>,
}

/// The publisher of this replica.
pub struct Relay {
    publisher: Arc<Publisher>,
    wakes: mpsc::Receiver<EnvironmentId>,
}

/// Both ends of this replica's queue.
#[must_use]
pub fn outbox(store: Store, bus: Bus) -> (Outbox, Relay) {
    let (sender, wakes) = mpsc::channel(QUEUE);
    let publisher = Arc::new(Publisher {
        store,
        bus,
        claims: AtomicU64::new(0),
    });
    (Outbox { wakes: sender }, Relay { publisher, wakes })
}

impl Outbox {
    /// Publishes the rows of `id`; to be called after the commit. Never waits.
    pub fn wake(&self, id: &EnvironmentId) {
        // When the queue is full, the sweep finds it.
        let _ = self.wakes.try_send(id.clone());
    }
}

impl Relay {
    /// Publishes until `shutdown`, and then the environments that are still queued.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { publisher, wakes } = self;
        let queued = futures::stream::unfold(wakes, |mut wakes| {
            let shutdown = shutdown.clone();
            async move {
                loop {
                    tokio::select! {
                        biased;
                        id = wakes.recv() => return id.map(|id| (id, wakes)),
                        // Queued ids are still received, then the end.
                        () = shutdown.cancelled(), if !wakes.is_closed() => wakes.close(),
                    }
                }
            }
        });
        let publish = |id| {
            let publisher = publisher.clone();
            async move { publisher.publish_environment(id).await }
        };
        let queued = queued.for_each_concurrent(CONCURRENCY, publish);
        let sweeping = async {
            while !shutdown.is_cancelled() {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(SWEEP_INTERVAL) => {}
                }
                match publisher.store.overdue_environments(SWEEP_LIMIT).await {
                    Ok(ids) => {
                        futures::stream::iter(ids)
                            .for_each_concurrent(SWEEP_CONCURRENCY, publish)
                            .await;
                    }
                    Err(error) => {
                        tracing::warn!(error = %ErrorChain(&error), "outbox not read");
                    }
                }
            }
        };
        tokio::join!(queued, sweeping);
    }
}

struct Publisher {
    store: Store,
    bus: Bus,
    /// The number of claims so far, which makes the holder of each unique.
    claims: AtomicU64,
}

impl Publisher {
    async fn publish_environment(&self, id: EnvironmentId) {
        let claim = self.claims.fetch_add(1, Ordering::Relaxed);
        let holder = format!("{}.{claim}", self.bus.instance());
        if let Err(error) = self.publish_pending(&id, &holder).await {
            metrics::outbox_failed();
            tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "outbox rows not published; retried");
        }
    }

    /// Publishes the rows of one environment, unless another publisher has claimed them.
    async fn publish_pending(&self, id: &EnvironmentId, holder: &str) -> Result<(), PublishError> {
        // Taken before the statement, so that the lease in Postgres ends later than ours.
        let mut claimed_at = Instant::now();
        if !self.store.claim_outbox(id, holder).await? {
            return Ok(());
        }
        loop {
            let batch = self.store.unpublished(id).await?;
            let last_begin = claimed_at + (OUTBOX_LEASE - PUBLISH_TIMEOUT);
            let mut published = 0;
            let mut outcome = Ok(());
            for row in &batch.rows {
                if Instant::now() >= last_begin {
                    break;
                }
                outcome = self.publish_in_time(id, row).await;
                if outcome.is_err() {
                    break;
                }
                published += 1;
            }
            let claim = if outcome.is_err() {
                ClaimAction::Release
            } else if published < batch.rows.len() || batch.is_full() {
                ClaimAction::Renew
            } else {
                ClaimAction::RenewIfRequeued
            };
            claimed_at = Instant::now();
            let is_held = self
                .store
                .mark_published(id, holder, &batch.rows[..published], claim)
                .await?;
            outcome?;
            if !is_held {
                return Ok(());
            }
        }
    }

    async fn publish_in_time(
        &self,
        id: &EnvironmentId,
        row: &OutboxRow,
    ) -> Result<(), PublishError> {
        match tokio::time::timeout(PUBLISH_TIMEOUT, self.publish(id, row)).await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(PublishError::Deadline),
        }
    }

    async fn publish(&self, id: &EnvironmentId, row: &OutboxRow) -> Result<(), BusError> {
        let (kind, destination) = match &row.message {
            OutboxMessage::Event(event) => ("event", subjects::event(&event.owner, id, event.kind)),
            OutboxMessage::Command { cluster, op } => {
                ("command", subjects::command(cluster, op, id))
            }
            OutboxMessage::Route(_) => ("route", subjects::ROUTES_BUCKET.to_owned()),
            OutboxMessage::Audit(entry) => ("audit", subjects::audit(entry.action)),
        };
        let span = publish_span(kind, &destination, id);
        trace::continue_from(&span, row.traceparent.as_deref());
        // The environment's id too: the row ids of a new database begin at 1 again.
        let message_id = format!("outbox-{id}-{}", row.id);
        let bus = &self.bus;
        async {
            match &row.message {
                OutboxMessage::Event(event) => {
                    bus.publish_event(event, &message_id).await.map(|_| ())
                }
                OutboxMessage::Command { cluster, op } => {
                    let subject = subjects::command(cluster, op, id);
                    bus.send_command(subject, &(), &message_id, COMMAND_TTL)
                        .await
                }
                OutboxMessage::Route(Some(route)) => bus.put_route(id, route).await,
                OutboxMessage::Route(None) => bus.delete_route(id).await,
                // Its own id is the message id.
                OutboxMessage::Audit(entry) => bus.record_audit(entry, PUBLISH_TIMEOUT).await,
            }
        }
        .instrument(span)
        .await?;
        metrics::published(kind);
        Ok(())
    }
}
