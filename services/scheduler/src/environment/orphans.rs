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
use futures::StreamExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::cluster::registry::Cluster;
use crate::environment::reconcile::Reconciler;
use crate::environment::store::{Live, Store, StoreError};
use crate::metrics;

const AT_ONCE: usize = 16;
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
    let is_as_it_shall_be = |row: &Live| {
        let phase = boxes.get(&row.id).map(|seen| &seen.phase);
        row.status == Status::Running && matches!(phase, Some(BoxPhase::Running { .. }))
    };
    Differences {
        reconcile: rows
            .iter()
            .filter(|row| !is_as_it_shall_be(row))
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
    let mut suspects = BTreeSet::new();
    while !held.is_cancelled() {
        let watch = tokio::select! {
            () = held.cancelled() => return,
            watch = runtime.watch() => watch,
        };
        match watch {
            Ok(changes) => {
                let changes = changes.take_until(held.cancelled()).ready_chunks(AT_ONCE);
                tokio::pin!(changes);
                let mut compare_at = Instant::now();
                loop {
                    let (ids, mut compare) = tokio::select! {
                        () = tokio::time::sleep_until(compare_at) => (BTreeSet::new(), true),
                        changed = changes.next() => match changed {
                            Some(changed) => {
                                let all = changed.iter().any(|change| change.id.is_none());
                                (changed.into_iter().filter_map(|change| change.id).collect(), all)
                            }
                            None => break,
                        },
                    };
                    wake(reconciler, ids, "watch").await;
                    compare |= Instant::now() >= compare_at;
                    if compare {
                        let compared =
                            compare_once(store, cluster, &*runtime, reconciler, &mut suspects)
                                .await;
                        if let Err(error) = compared {
                            tracing::warn!(%error, cluster = cluster.name, "boxes and rows were not compared");
                        }
                        compare_at = Instant::now() + interval;
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, cluster = cluster.name, "the cluster cannot be watched")
            }
        }
        tokio::select! {
            () = held.cancelled() => {}
            () = tokio::time::sleep(WATCH_RETRY) => {}
        }
    }
}

async fn wake(reconciler: &Arc<Reconciler>, ids: BTreeSet<EnvironmentId>, why: &'static str) {
    futures::stream::iter(ids)
        .for_each_concurrent(AT_ONCE, |id| {
            let span = tracing::info_span!(parent: None, "reconcile", otel.name = format!("reconcile {why}"), environment = %id);
            async move {
                if let Err(error) = reconciler.reconcile(&id).await {
                    tracing::warn!(%error, environment = %id, "not reconciled");
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
        match runtime.remove(id).await {
            Ok(()) => {
                metrics::orphan_removed();
                tracing::warn!(environment = %id, cluster = cluster.name, "a box that nothing wants was removed");
            }
            Err(error) => {
                tracing::warn!(%error, environment = %id, "an unwanted box was not removed")
            }
        }
    }
    *suspects = unwanted;
    wake(reconciler, reconcile, "compare").await;
    Ok(())
}
