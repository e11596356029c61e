//! Reads events from the bus, and stores their deliveries.

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{EventQueue, QueuedEvent};
use agentbox_contracts::ErrorChain;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::store::Store;

/// The most events that are read at once.
const BATCH: usize = 100;
const PULL: Duration = Duration::from_secs(5);
/// The wait after a failure of NATS or Postgres.
const RETRY_DELAY: Duration = Duration::from_secs(1);

pub struct Ingest {
    pub queue: EventQueue,
    pub store: Store,
    pub max_pending: u32,
    /// Wakes the worker that attempts deliveries.
    pub due: Arc<Notify>,
}

impl Ingest {
    /// Stores deliveries until `shutdown`.
    ///
    /// # Errors
    /// None: an event whose deliveries are not stored is delivered again.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), anyhow::Error> {
        shutdown.run_until_cancelled(self.work()).await;
        Ok(())
    }

    async fn work(&mut self) {
        loop {
            let events = match self.queue.pull(BATCH, PULL).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "events not read; retried");
                    tokio::time::sleep(RETRY_DELAY).await;
                    continue;
                }
            };
            for event in events {
                if !self.store_event(&event).await {
                    // It and the rest of the batch are delivered again.
                    tokio::time::sleep(RETRY_DELAY).await;
                    break;
                }
            }
        }
    }

    /// Whether the deliveries of the event are stored.
    async fn store_event(&self, queued: &QueuedEvent) -> bool {
        let stored = self
            .store
            .insert_deliveries(&queued.id, queued.sequence, &queued.event, self.max_pending)
            .await;
        match stored {
            Ok(counts) => {
                metrics::event_stored();
                metrics::dead(counts.dead);
                if counts.pending > 0 {
                    self.due.notify_one();
                }
                queued.acknowledge().await;
                true
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "deliveries not stored; retried");
                false
            }
        }
    }
}
