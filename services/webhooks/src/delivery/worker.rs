//! Attempts the deliveries that are due.
//!
//! * I1. A replica attempts the deliveries of one webhook one after the other, so a slow receiver delays
//!   no other webhook.
//! * I2. A claimed delivery is due again after its lease, also when its replica was killed. Its result is
//!   written only if no other attempt has begun.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::WebhookId;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::retry::Retries;
use super::send::{Failure, Message, Sender};
use crate::metrics;
use crate::store::Store;
use crate::store::deliveries::{Claimed, Outcome};

/// The most webhooks that a replica sends to at the same time.
const MAX_WEBHOOKS: usize = 64;
/// The most deliveries of one webhook that are claimed at once.
const CLAIMED_AT_ONCE: u32 = 4;
/// How often a replica looks for deliveries that have become due.
const POLL: Duration = Duration::from_secs(1);
/// How often the storing of a result is tried.
const FINISH_TRIES: u32 = 3;
/// The wait after a result was not stored.
const FINISH_DELAY: Duration = Duration::from_secs(1);

/// How long a claimed delivery is hidden from other replicas, if one attempt may take `timeout`.
#[must_use]
pub fn lease(timeout: Duration) -> Duration {
    timeout * (CLAIMED_AT_ONCE + 1)
}

#[derive(Clone)]
pub struct Worker {
    pub store: Store,
    pub sender: Arc<Sender>,
    pub retries: Retries,
    pub lease: Duration,
    pub due: Arc<Notify>,
}

impl Worker {
    /// Attempts deliveries until `shutdown`, and completes the attempts that have begun.
    ///
    /// # Errors
    /// When an attempt panicked.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), anyhow::Error> {
        let mut sending: JoinSet<WebhookId> = JoinSet::new();
        let mut busy: HashSet<WebhookId> = HashSet::new();
        while !shutdown.is_cancelled() {
            let claimed = self.claim(&busy).await;
            for (webhook, deliveries) in claimed {
                busy.insert(webhook.clone());
                let (worker, shutdown) = (self.clone(), shutdown.clone());
                sending.spawn(async move {
                    worker.attempt_all(&deliveries, &shutdown).await;
                    webhook
                });
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                Some(ended) = sending.join_next() => {
                    busy.remove(&ended?);
                }
                () = self.due.notified() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
        while sending.join_next().await.is_some() {}
        Ok(())
    }

    /// Claims due deliveries of webhooks that are not in `busy`, by webhook.
    async fn claim(&self, busy: &HashSet<WebhookId>) -> HashMap<WebhookId, Vec<Claimed>> {
        let free = MAX_WEBHOOKS.saturating_sub(busy.len());
        let mut groups: HashMap<WebhookId, Vec<Claimed>> = HashMap::new();
        if free == 0 {
            return groups;
        }
        let claimed = self
            .store
            .claim(busy, free, CLAIMED_AT_ONCE, self.lease)
            .await;
        match claimed {
            Ok(claimed) => {
                for delivery in claimed {
                    let group = groups.entry(delivery.webhook.clone()).or_default();
                    group.push(delivery);
                }
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "due deliveries not read; retried");
            }
        }
        groups
    }

    async fn attempt_all(&self, deliveries: &[Claimed], shutdown: &CancellationToken) {
        for delivery in deliveries {
            if shutdown.is_cancelled() {
                // Another replica attempts the rest after the lease.
                return;
            }
            self.attempt(delivery).await;
        }
    }

    async fn attempt(&self, delivery: &Claimed) {
        let outcome = match self.send(delivery).await {
            Ok(status) => Outcome::Delivered { status },
            Err(failure) => {
                let status = failure.status();
                let error = failure.to_string();
                match self.retries.after(delivery.attempts, rand::random()) {
                    Some(wait) => Outcome::Retried {
                        status,
                        error,
                        wait,
                    },
                    None => Outcome::Dead { status, error },
                }
            }
        };
        self.finish(delivery, &outcome).await;
    }

    /// Stores the result of an attempt. A short outage of Postgres causes no second attempt.
    async fn finish(&self, delivery: &Claimed, outcome: &Outcome) {
        for _ in 0..FINISH_TRIES {
            match self
                .store
                .finish(&delivery.id, delivery.attempts, outcome)
                .await
            {
                Ok(true) if matches!(outcome, Outcome::Dead { .. }) => {
                    metrics::dead(1);
                    tracing::info!(delivery = %delivery.id, webhook = %delivery.webhook, "delivery is dead");
                    return;
                }
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), delivery = %delivery.id, "outcome of a delivery not stored");
                    tokio::time::sleep(FINISH_DELAY).await;
                }
            }
        }
        tracing::warn!(delivery = %delivery.id, "the delivery is attempted again after its lease");
    }

    async fn send(&self, delivery: &Claimed) -> Result<u16, Failure> {
        let key = self
            .store
            .open_key(&delivery.webhook, &delivery.sealed_key)
            .map_err(|error| {
                tracing::error!(error = %ErrorChain(&error), webhook = %delivery.webhook, "key not readable");
                Failure::Key
            })?;
        let message = Message {
            id: &delivery.id,
            url: &delivery.url,
            key: &key,
            body: &delivery.body,
        };
        self.sender.send(&message).await
    }
}
