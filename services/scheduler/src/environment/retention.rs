//! Forgets what is past its retention. One replica does so (a lease).

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::environment::store::Store;
use crate::metrics;

const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Sweeps until `held` is cancelled; `retention` is for ended environments.
pub async fn sweep(store: &Store, retention: Duration, held: CancellationToken) {
    while !held.is_cancelled() {
        let pause = match store.forget(retention).await {
            Ok(0) => SWEEP_EVERY,
            Ok(rows) => {
                metrics::forgotten(rows);
                tracing::info!(rows, "forgotten after their retention");
                // There may be another batch.
                Duration::from_secs(1)
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "old rows cannot be deleted"
                );
                SWEEP_EVERY
            }
        };
        tokio::select! {
            () = held.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}
