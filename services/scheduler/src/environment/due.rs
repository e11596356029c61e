//! Looks at what is due, whatever messages came or were lost: a command that expired, a
//! claim whose holder was killed, a box that is slow to start.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::environment::reconcile::Reconciler;
use crate::environment::store::Store;

const LOOK_EVERY: Duration = Duration::from_millis(250);
const BATCH: u32 = 64;

/// Drives what is due in one cluster, up to `at_once` at a time, until `shutdown`. Every
/// replica does so; each environment is taken by one of them. A cluster that hangs holds up
/// only its own.
pub async fn keep_driving(
    store: Store,
    cluster: String,
    reconciler: Arc<Reconciler>,
    at_once: usize,
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
                        () = tokio::time::sleep(LOOK_EVERY) => {}
                    }
                }
                if shutdown.is_cancelled() {
                    return None;
                }
                at_once = false;
                match store.due(&cluster, BATCH).await {
                    Ok(ids) if ids.is_empty() => {}
                    // Where there was one batch there may be another.
                    Ok(ids) => return Some((ids, (store, cluster, shutdown, true))),
                    Err(error) => tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "what is due cannot be read"
                    ),
                }
            }
        },
    );
    due.map(futures::stream::iter)
        .flatten()
        .for_each_concurrent(at_once, |id| {
            let reconciler = Arc::clone(&reconciler);
            let span = tracing::info_span!(parent: None, "reconcile", otel.name = "reconcile due", environment = %id);
            async move {
                if let Err(error) = reconciler.reconcile(&id).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, environment = %id, "not reconciled; it stays due");
                }
            }
            .instrument(span)
        })
        .await;
}
