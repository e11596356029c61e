//! Reconciles due environments. An environment becomes due when its command was lost or expired,
//! when the holder of its claim was killed, and when its box is slow to start.

use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::environment::reconcile::Reconciler;
use crate::environment::store::Store;

const POLL_INTERVAL: Duration = Duration::from_millis(250);
const BATCH: u32 = 64;

/// Reconciles the due environments of one cluster, up to `concurrency` at a time, until
/// `shutdown`. Every replica does so; each environment is taken by one of them. A cluster
/// that hangs delays only its own environments.
pub async fn run_due(
    store: Store,
    cluster: String,
    reconciler: Arc<Reconciler>,
    concurrency: usize,
    shutdown: CancellationToken,
) {
    let source = (store, cluster, shutdown, false);
    let due = futures::stream::unfold(
        source,
        |(store, cluster, shutdown, mut at_once)| async move {
            loop {
                if !at_once {
                    tokio::select! {
                        () = shutdown.cancelled() => return None,
                        () = tokio::time::sleep(POLL_INTERVAL) => {}
                    }
                }
                if shutdown.is_cancelled() {
                    return None;
                }
                at_once = false;
                match store.take_due(&cluster, BATCH).await {
                    Ok(ids) if ids.is_empty() => {}
                    // After one batch there may be another.
                    Ok(ids) => return Some((ids, (store, cluster, shutdown, true))),
                    Err(error) => {
                        tracing::warn!(error = %ErrorChain(&error), cluster, "due environments not read");
                    }
                }
            }
        },
    );
    due.map(futures::stream::iter)
        .flatten()
        .for_each_concurrent(concurrency, |id| {
            let reconciler = Arc::clone(&reconciler);
            let span = tracing::info_span!(parent: None, "reconcile", otel.name = "reconcile due", environment.id = %id);
            async move {
                if let Err(error) = reconciler.reconcile(&id).await {
                    tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "environment not reconciled; it stays due");
                }
            }
            .instrument(span)
        })
        .await;
}
