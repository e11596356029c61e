//! Publishes what the database says: commands, events and routes.
//!
//! * I1. One environment's rows are published in order, by one process at a time (a
//!   Postgres lock); different environments do not wait for each other.
//! * I2. Each row is published at least once. Its id is in the `Nats-Msg-Id`, so that a row
//!   whose publisher was killed before it was marked is not stored twice.
//! * I3. The replica that wrote a row publishes it at once. What a killed replica left,
//!   or what the bus refused, is found by any other within half a second.

use std::time::Duration;

use agentbox_bus::{Bus, BusError};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::environment::store::{Item, OutboxRow, Store, StoreError};
use crate::{metrics, trace};

/// Environments that wait for this replica's publisher; more are found by the sweep.
const QUEUE: usize = 4096;
/// Each holds a database connection while the bus answers.
const AT_ONCE: usize = 8;
const SWEEP_EVERY: Duration = Duration::from_millis(250);
const SWEEP_LIMIT: u32 = 256;
const PUBLISH_WITHIN: Duration = Duration::from_secs(2);
/// A command is a wake-up: whoever sweeps later sees the same.
const COMMAND_LIFE: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("the bus did not answer within {PUBLISH_WITHIN:?}")]
    Deadline,
}

/// Tells this replica's publisher that there is something to publish.
#[derive(Clone)]
pub struct Outbox {
    wakes: mpsc::Sender<EnvironmentId>,
}

/// Publishes; one a process.
pub struct Relay {
    store: Store,
    bus: Bus,
    wakes: mpsc::Receiver<EnvironmentId>,
}

/// The two ends.
#[must_use]
pub fn outbox(store: Store, bus: Bus) -> (Outbox, Relay) {
    let (sender, wakes) = mpsc::channel(QUEUE);
    (Outbox { wakes: sender }, Relay { store, bus, wakes })
}

impl Outbox {
    /// Call it after the commit. Never waits; when the queue is full the sweep finds it.
    pub fn wake(&self, id: &EnvironmentId) {
        let _ = self.wakes.try_send(id.clone());
    }
}

impl Relay {
    /// Publishes until `shutdown`, then what is queued, and ends.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { store, bus, wakes } = self;
        let queued = futures::stream::unfold(wakes, |mut wakes| {
            let shutdown = shutdown.clone();
            async move {
                loop {
                    tokio::select! {
                        biased;
                        id = wakes.recv() => return id.map(|id| (id, wakes)),
                        // What is queued already still comes, then the end.
                        () = shutdown.cancelled(), if !wakes.is_closed() => wakes.close(),
                    }
                }
            }
        });
        let publish = |id| {
            let (store, bus) = (store.clone(), bus.clone());
            async move { publish_of(&store, &bus, &id).await }
        };
        let queued = queued.for_each_concurrent(AT_ONCE, publish);
        let sweeping = async {
            while !shutdown.is_cancelled() {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(SWEEP_EVERY) => {}
                }
                match store.overdue_in_outbox(SWEEP_LIMIT).await {
                    Ok(ids) => {
                        futures::stream::iter(ids)
                            .for_each_concurrent(2, publish)
                            .await
                    }
                    Err(error) => tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the outbox cannot be read"
                    ),
                }
            }
        };
        tokio::join!(queued, sweeping);
    }
}

async fn publish_of(store: &Store, bus: &Bus, id: &EnvironmentId) {
    if let Err(error) = relay(store, bus, id).await {
        metrics::outbox_failed();
        tracing::warn!(error = &error as &dyn std::error::Error, environment = %id, "not published yet; it is tried again");
    }
}

/// Publishes one environment's rows, as many as the bus takes.
async fn relay(store: &Store, bus: &Bus, id: &EnvironmentId) -> Result<(), RelayError> {
    loop {
        let taken = store.unpublished(id).await?;
        if taken.rows.is_empty() {
            return Ok(taken.published(0).await?);
        }
        let mut done = 0;
        let mut outcome = Ok(());
        for row in &taken.rows {
            outcome = match tokio::time::timeout(PUBLISH_WITHIN, publish(bus, id, row)).await {
                Ok(outcome) => outcome.map_err(RelayError::from),
                Err(_) => Err(RelayError::Deadline),
            };
            if outcome.is_err() {
                break;
            }
            done += 1;
        }
        taken.published(done).await?;
        outcome?;
    }
}

async fn publish(bus: &Bus, id: &EnvironmentId, row: &OutboxRow) -> Result<(), BusError> {
    let (kind, destination) = match row.item {
        Item::Event(_) => ("event", "evt.env"),
        Item::Command { .. } => ("command", "cmd.env"),
        Item::Route(_) => ("route", "routes"),
    };
    let span = tracing::info_span!(
        parent: None,
        "publish",
        otel.name = format!("publish env {kind}"),
        otel.kind = "producer",
        messaging.system = "nats",
        messaging.operation.type = "send",
        messaging.destination.template = destination,
        environment = %id,
    );
    trace::continue_from(&span, row.traceparent.as_deref());
    // With the environment: a database that was set up anew begins to count at 1 again.
    let message_id = format!("outbox-{id}-{}", row.id);
    async {
        match &row.item {
            Item::Event(event) => bus.publish_event(event, &message_id).await.map(|_| ()),
            Item::Command { cluster, op } => {
                let subject = subjects::command(cluster, op, id);
                bus.send_command(subject, &(), &message_id, COMMAND_LIFE)
                    .await
            }
            Item::Route(Some(route)) => bus.put_route(id, route).await,
            Item::Route(None) => bus.delete_route(id).await,
        }
    }
    .instrument(span)
    .await?;
    metrics::published(kind);
    Ok(())
}
