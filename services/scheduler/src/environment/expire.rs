//! Ends what has lived its time. The deadline is a column; one replica (a lease) looks
//! every second, and any other takes over.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::environment::handlers::Environments;
use crate::environment::state::EndReason;

const SWEEP_EVERY: Duration = Duration::from_secs(1);
const BATCH: u32 = 256;

/// Sweeps until `held` is cancelled.
pub async fn sweep(environments: &Environments, held: CancellationToken) {
    while !held.is_cancelled() {
        match environments.store().expired(BATCH).await {
            Ok(expired) => {
                for record in expired {
                    let id = record.environment.id.clone();
                    if let Err(error) = environments.end(record, EndReason::Expired, false).await {
                        tracing::warn!(error = &error as &dyn std::error::Error, environment = %id, "not expired yet; it is tried again");
                    }
                }
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what has expired cannot be read"
            ),
        }
        tokio::select! {
            () = held.cancelled() => {}
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
    }
}
