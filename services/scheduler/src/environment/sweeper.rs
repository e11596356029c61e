//! Periodic work that one replica does for all: ending expired environments, and purging rows
//! past their retention. When that replica is killed, another takes over once its lease expires.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use tokio_util::sync::CancellationToken;

use crate::environment::handlers::Environments;
use crate::environment::state::EndReason;
use crate::environment::store::Store;
use crate::metrics;

const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
const EXPIRY_BATCH: u32 = 256;
const PURGE_INTERVAL: Duration = Duration::from_secs(60);
/// The pause after a batch: another may follow.
const PURGE_AGAIN: Duration = Duration::from_secs(1);

/// Waits for `interval`; returns at once when `held` is cancelled.
async fn pause(interval: Duration, held: &CancellationToken) {
    tokio::select! {
        () = held.cancelled() => {}
        () = tokio::time::sleep(interval) => {}
    }
}

/// Ends expired environments until `held` is cancelled.
pub async fn run_expiry(environments: &Environments, held: CancellationToken) {
    while !held.is_cancelled() {
        match environments.store().expired(EXPIRY_BATCH).await {
            Ok(expired) => {
                for record in expired {
                    let id = record.environment.id.clone();
                    if let Err(error) = environments.end(record, EndReason::Expired, false).await {
                        tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "environment not expired; retried");
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "expired environments not read");
            }
        }
        pause(EXPIRY_INTERVAL, &held).await;
    }
}

/// Purges rows past their retention until `held` is cancelled; `retention` is for ended
/// environments.
pub async fn run_purge(store: &Store, retention: Duration, held: CancellationToken) {
    while !held.is_cancelled() {
        let interval = match store.purge(retention).await {
            Ok(0) => PURGE_INTERVAL,
            Ok(rows) => {
                metrics::rows_purged(rows);
                tracing::info!(rows, "rows purged after their retention");
                PURGE_AGAIN
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "rows not purged");
                PURGE_INTERVAL
            }
        };
        pause(interval, &held).await;
    }
}
