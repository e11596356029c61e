//! Compares a cluster's boxes with the database, both ways. One replica does so for each
//! cluster (a lease), which also follows the cluster's changes.
//!
//! * What runs without a row that wants it is removed: at once when its row says that it
//!   has ended, else when two comparisons in a row saw it.
//! * A row whose box is not as the row says is reconciled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, Observed, Runtime, RuntimeError};
use futures::{Stream, StreamExt as _};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::cluster::registry::Cluster;
use crate::environment::reconcile::Reconciler;
use crate::environment::store::{Live, Store, StoreError};
use crate::metrics;

/// One that waits for its archive must not hold up the others.
const AT_ONCE: usize = 128;
const WATCH_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// What a comparison asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Rows to reconcile.
    pub reconcile: BTreeSet<EnvironmentId>,
    /// Boxes that no row wants.
    pub unwanted: BTreeSet<EnvironmentId>,
}

/// Compares. Pure.
#[must_use]
pub fn differences(boxes: &[Observed], rows: &[Live]) -> Differences {
    let boxes: BTreeMap<&EnvironmentId, &Observed> = boxes.iter().map(|b| (&b.id, b)).collect();
    let wanted: BTreeSet<&EnvironmentId> = rows.iter().map(|row| &row.id).collect();
    let has_news = |row: &Live| match (row.status, boxes.get(&row.id).map(|seen| &seen.phase)) {
        (Status::Running, Some(BoxPhase::Running { .. })) => false,
        (Status::Running, _) => true,
        (Status::Pending, phase) => !matches!(phase, None | Some(BoxPhase::Starting { .. })),
        // Their due times see to them.
        (Status::Terminating | Status::Terminated | Status::Failed, _) => false,
    };
    Differences {
        reconcile: rows
            .iter()
            .filter(|row| has_news(row))
            .map(|row| row.id.clone())
            .collect(),
        unwanted: boxes
            .keys()
            .filter(|id| !wanted.contains(*id))
            .map(|id| (*id).clone())
            .collect(),
    }
}

/// Follows one cluster until `held` is cancelled: its changes as they come, everything at
/// each `interval` and whenever the watch was broken.
pub async fn follow(
    store: &Store,
    cluster: &Cluster,
    reconciler: &Arc<Reconciler>,
    interval: Duration,
    held: CancellationToken,
) {
    let Some(runtime) = cluster.runtime().cloned() else {
        return;
    };
    let anything = Notify::new();
    let watching = watch(cluster, &*runtime, reconciler, &anything, &held);
    let comparing = async {
        let mut suspects = BTreeSet::new();
        while !held.is_cancelled() {
            let compared = compare_once(store, cluster, &*runtime, reconciler, &mut suspects).await;
            if let Err(error) = compared {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    cluster = cluster.name,
                    "boxes and rows were not compared"
                );
            }
            tokio::select! {
                () = held.cancelled() => {}
                () = anything.notified() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    };
    tokio::join!(watching, comparing);
}

/// Reconciles what the cluster says has changed; `anything` when it may be anything.
async fn watch(
    cluster: &Cluster,
    runtime: &dyn Runtime,
    reconciler: &Arc<Reconciler>,
    anything: &Notify,
    held: &CancellationToken,
) {
    while !held.is_cancelled() {
        let changes = tokio::select! {
            () = held.cancelled() => return,
            changes = runtime.watch() => changes,
        };
        match changes {
            Ok(changes) => {
                let ids = changes
                    .take_until(held.cancelled())
                    .filter_map(|change| async move {
                        if change.id.is_none() {
                            anything.notify_one();
                        }
                        change.id
                    });
                reconcile_all(reconciler, ids, "watch").await;
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    cluster = cluster.name,
                    "the cluster cannot be watched"
                )
            }
        }
        tokio::select! {
            () = held.cancelled() => {}
            () = tokio::time::sleep(WATCH_RETRY) => {}
        }
    }
}

async fn reconcile_all(
    reconciler: &Arc<Reconciler>,
    ids: impl Stream<Item = EnvironmentId>,
    why: &'static str,
) {
    ids.for_each_concurrent(AT_ONCE, |id| {
        let span = tracing::info_span!(parent: None, "reconcile", otel.name = format!("reconcile {why}"), environment = %id);
        async move {
            if let Err(error) = reconciler.reconcile(&id).await {
                tracing::warn!(error = &error as &dyn std::error::Error, environment = %id, "not reconciled");
            }
        }
        .instrument(span)
    })
    .await;
}

/// One comparison; `suspects` are the boxes without any row that the last one saw.
async fn compare_once(
    store: &Store,
    cluster: &Cluster,
    runtime: &dyn Runtime,
    reconciler: &Arc<Reconciler>,
    suspects: &mut BTreeSet<EnvironmentId>,
) -> Result<(), CompareError> {
    // In this order: a box made between the two has its row in the second.
    let boxes = runtime.list().await?;
    let rows = store.live_in(&cluster.name).await?;
    let Differences {
        reconcile,
        unwanted,
    } = differences(&boxes, &rows);
    let candidates: Vec<EnvironmentId> = unwanted.iter().cloned().collect();
    let finished: BTreeSet<EnvironmentId> = if candidates.is_empty() {
        BTreeSet::new()
    } else {
        store
            .finished_among(&candidates)
            .await?
            .into_iter()
            .collect()
    };
    for id in &unwanted {
        if !finished.contains(id) && !suspects.contains(id) {
            continue;
        }
        let span = tracing::info_span!(parent: None, "collect", otel.name = "remove orphan", environment = %id);
        match runtime.remove(id).instrument(span).await {
            Ok(()) => {
                metrics::orphan_removed();
                tracing::warn!(environment = %id, cluster = cluster.name, "a box that nothing wants was removed");
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, environment = %id, "an unwanted box was not removed")
            }
        }
    }
    *suspects = unwanted;
    reconcile_all(reconciler, futures::stream::iter(reconcile), "compare").await;
    Ok(())
}
