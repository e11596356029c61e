//! When keys were last used, written now and then.
//!
//! * I1. A request never waits for this: a use is noted in memory, one write carries many.
//! * I2. Bounded: beyond the bound, uses of further keys are dropped and counted; the
//!   column is for people and decides nothing.
//! * I3. An orderly stop writes what is noted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentbox_contracts::ids::ApiKeyId;
use chrono::{DateTime, Utc};
use sea_orm::DatabaseConnection;
use tokio_util::sync::CancellationToken;

use super::store;
use crate::metrics;

/// Keys noted between two writes.
const MAX_NOTED: usize = 20_000;
/// Keys in one write.
const BATCH: usize = 1_000;

type Noted = BTreeMap<ApiKeyId, DateTime<Utc>>;

pub struct LastUsed {
    database: DatabaseConnection,
    noted: Mutex<Noted>,
}

impl LastUsed {
    pub fn new(database: DatabaseConnection) -> Self {
        Self {
            database,
            noted: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, id: &ApiKeyId, at: DateTime<Utc>) {
        if !note(&mut self.lock(), id, at, MAX_NOTED) {
            metrics::key_uses_dropped(1);
        }
    }

    /// Writes what is noted. What cannot be written is noted again.
    pub async fn flush(&self) {
        let noted: Vec<_> = std::mem::take(&mut *self.lock()).into_iter().collect();
        for (written, batch) in noted.chunks(BATCH).enumerate() {
            let uses = batch.iter().map(|(id, at)| (id, at));
            if let Err(error) = store::note_uses(&self.database, uses).await {
                tracing::warn!(%error, "the last uses of API keys could not be written");
                for (id, at) in noted.iter().skip(written * BATCH) {
                    self.note(id, *at);
                }
                return;
            }
        }
    }

    /// Writes every `interval` until `shutdown`; the last write is the caller's, after its
    /// last request.
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

/// Whether there was room. The later time stays.
fn note(noted: &mut Noted, id: &ApiKeyId, at: DateTime<Utc>, bound: usize) -> bool {
    if let Some(known) = noted.get_mut(id) {
        *known = at.max(*known);
        return true;
    }
    if noted.len() >= bound {
        return false;
    }
    noted.insert(id.clone(), at);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_use_stays_and_a_full_table_takes_no_more_keys() {
        let (early, late) = (DateTime::UNIX_EPOCH, Utc::now());
        let (first, second) = (ApiKeyId::random(), ApiKeyId::random());
        let mut noted = Noted::new();
        assert!(note(&mut noted, &first, late, 1));
        assert!(
            note(&mut noted, &first, early, 1),
            "a known key needs no room"
        );
        assert!(!note(&mut noted, &second, late, 1));
        assert_eq!(noted, Noted::from([(first, late)]));
    }
}
