//! The times of the last use of API keys, written in batches.
//!
//! * I1. A request never waits for a write: its use is recorded in memory, and one write has many
//!   uses.
//! * I2. Memory is bounded: beyond the bound, uses of further keys are dropped and counted.
//!   The column is for display and decides nothing.
//! * I3. An orderly shutdown writes the recorded uses.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::ApiKeyId;
use chrono::{DateTime, Utc};
use sea_orm::DatabaseConnection;
use tokio_util::sync::CancellationToken;

use super::store;
use crate::metrics;

/// Keys recorded between two writes.
const MAX_PENDING: usize = 20_000;
/// Keys in one write.
const BATCH: usize = 1_000;

type Pending = BTreeMap<ApiKeyId, DateTime<Utc>>;

pub struct LastUsed {
    database: DatabaseConnection,
    pending: Mutex<Pending>,
}

impl LastUsed {
    pub fn new(database: DatabaseConnection) -> Self {
        Self {
            database,
            pending: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a use in memory.
    pub fn record(&self, id: &ApiKeyId, at: DateTime<Utc>) {
        if !record(&mut self.lock(), id, at, MAX_PENDING) {
            metrics::key_uses_dropped(1);
        }
    }

    /// Writes the recorded uses. Those that cannot be written are recorded again.
    pub async fn flush(&self) {
        let pending: Vec<_> = std::mem::take(&mut *self.lock()).into_iter().collect();
        for (written, batch) in pending.chunks(BATCH).enumerate() {
            let uses = batch.iter().map(|(id, at)| (id, at));
            if let Err(error) = store::record_uses(&self.database, uses).await {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    "last uses of API keys not written; retried"
                );
                for (id, at) in pending.iter().skip(written * BATCH) {
                    self.record(id, *at);
                }
                return;
            }
        }
    }

    /// Writes every `interval` until `shutdown`. The caller calls [`Self::flush`] once more after
    /// its last request.
    ///
    /// # Errors
    /// None.
    pub async fn run(
        &self,
        interval: Duration,
        shutdown: CancellationToken,
    ) -> Result<(), anyhow::Error> {
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tick.tick() => self.flush().await,
            }
        }
    }
}

/// Records a use; of two times the later one is kept. False: the table is full.
fn record(pending: &mut Pending, id: &ApiKeyId, at: DateTime<Utc>, bound: usize) -> bool {
    if let Some(known) = pending.get_mut(id) {
        *known = at.max(*known);
        return true;
    }
    if pending.len() >= bound {
        return false;
    }
    pending.insert(id.clone(), at);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_use_is_kept_and_full_table_refuses_further_keys() {
        let (early, late) = (DateTime::UNIX_EPOCH, Utc::now());
        let (first, second) = (ApiKeyId::random(), ApiKeyId::random());
        let mut pending = Pending::new();
        assert!(record(&mut pending, &first, late, 1));
        assert!(
            record(&mut pending, &first, early, 1),
            "a known key needs no room"
        );
        assert!(!record(&mut pending, &second, late, 1));
        assert_eq!(pending, Pending::from([(first, late)]));
    }
}
