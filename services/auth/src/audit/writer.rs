//! Chains entries, in batches, on the one replica that holds lease `audit-chain`.
//!
//! It is safe to do twice: a batch is one transaction under a lock, and an entry that was chained
//! before is left out. An entry of the bus is acknowledged after its batch is committed.

use std::time::Duration;

use agentbox_bus::{AuditQueue, Bus};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::audit::{AuditEntry, AuditHead};
use agentbox_database::Leases;
use chrono::Utc;
use sea_orm::DatabaseConnection;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chain::{ChainKey, Link};
use super::store;
use crate::metrics;
use crate::store::StoreError;

/// How long a batch waits for entries of the bus. The outbox is read after it.
const BATCH_WAIT: Duration = Duration::from_millis(250);
/// The wait after the bus or Postgres has failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

pub struct Writer {
    pub database: DatabaseConnection,
    pub bus: Bus,
    pub leases: Leases,
    pub key: ChainKey,
    /// How often the end of the chain is published.
    pub head_interval: Duration,
}

impl Writer {
    /// Chains until `shutdown`, while this replica holds the lease.
    ///
    /// # Errors
    /// None: a failed batch is retried.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), anyhow::Error> {
        let writer = &self;
        let work = |held: CancellationToken| async move {
            held.run_until_cancelled(writer.write()).await;
        };
        self.leases
            .run_while_held("audit-chain", &shutdown, work)
            .await;
        Ok(())
    }

    async fn write(&self) {
        let mut queue = self.bus.audit_queue();
        let mut published_at: Option<Instant> = None;
        let mut known: Option<Link> = None;
        loop {
            let Some(head) = self.write_batch(&mut queue, known).await else {
                tokio::time::sleep(RETRY_DELAY).await;
                continue;
            };
            known = Some(head);
            let is_due = published_at.is_none_or(|at| at.elapsed() >= self.head_interval);
            if is_due && head != Link::GENESIS && self.publish(&head).await {
                published_at = Some(Instant::now());
            }
        }
    }

    /// Chains one batch. Returns the end of the chain, which was `known` before; `None` when
    /// Postgres failed.
    async fn write_batch(&self, queue: &mut AuditQueue, known: Option<Link>) -> Option<Link> {
        let queued = match queue.pull(store::BATCH, BATCH_WAIT).await {
            Ok(queued) => queued,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "audit entries not received; retried");
                // The outbox is chained without them.
                tokio::time::sleep(RETRY_DELAY).await;
                Vec::new()
            }
        };
        let entries: Vec<&AuditEntry> = queued.iter().map(|queued| &queued.entry).collect();
        let head = match self.append(&entries, known).await {
            Ok(head) => head,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), entries = entries.len(), "audit entries not chained; retried");
                return None;
            }
        };
        for queued in &queued {
            queued.acknowledge().await;
        }
        Some(head)
    }

    async fn append(
        &self,
        entries: &[&AuditEntry],
        known: Option<Link>,
    ) -> Result<Link, StoreError> {
        if let Some(head) = known
            && entries.is_empty()
            && !store::has_outbox_entries(&self.database).await?
        {
            return Ok(head);
        }
        let mut appended = store::append(&self.database, entries).await?;
        metrics::audit_chained(appended.entries);
        while appended.has_more {
            appended = store::append(&self.database, &[]).await?;
            metrics::audit_chained(appended.entries);
        }
        Ok(appended.head)
    }

    /// Publishes the end of the chain, on the bus and in the log. False: the bus refused it.
    async fn publish(&self, link: &Link) -> bool {
        let head = AuditHead {
            sequence: link.sequence,
            hash: hex::encode(link.hash),
            signature: hex::encode(self.key.sign(link)),
            at: Utc::now(),
        };
        match self.bus.publish_audit_head(&head, HEAD_DEADLINE).await {
            Ok(()) => {
                tracing::info!(
                    sequence = head.sequence,
                    hash = head.hash,
                    signature = head.signature,
                    "audit head published"
                );
                true
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "audit head not published; retried");
                false
            }
        }
    }
}
