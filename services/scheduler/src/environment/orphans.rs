//! Compares a cluster's boxes with the database, in both directions, and follows the
//! cluster's changes. One replica does so for each cluster, the holder of a lease.
//!
//! * I1. A box without an active environment is an orphan. It is removed at once when its
//!   environment has ended and its first box was removed; otherwise when the next comparison finds
//!   it too.
//! * I2. An environment whose box is not in the phase of its row is reconciled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, Observed, Runtime, RuntimeError};
use chrono::Utc;
use futures::{Stream, StreamExt as _};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::cluster::registry::Cluster;
use crate::environment::reconcile::Reconciler;
use crate::environment::store::{ActiveEnvironment, Store, StoreError};
use crate::metrics;

/// Large, because a reconcile that waits for an archive must not delay the others.
const CONCURRENCY: usize = 128;
const WATCH_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Rows to reconcile.
    pub reconcile: BTreeSet<EnvironmentId>,
    /// Boxes without an active environment.
    pub orphans: BTreeSet<EnvironmentId>,
}

/// Compares boxes and rows. Pure.
#[must_use]
pub fn differences(boxes: &[Observed], rows: &[ActiveEnvironment]) -> Differences {
    let boxes: BTreeMap<&EnvironmentId, &Observed> = boxes.iter().map(|b| (&b.id, b)).collect();
    let active: BTreeSet<&EnvironmentId> = rows.iter().map(|row| &row.id).collect();
    let phase_of = |row: &ActiveEnvironment| boxes.get(&row.id).map(|observed| &observed.phase);
    let needs_reconcile = |row: &ActiveEnvironment| match (row.status, phase_of(row)) {
        (Some(Status::Running), Some(BoxPhase::Running { .. })) => false,
        (Some(Status::Running), _) => true,
        (Some(Status::Pending), phase) => !matches!(phase, None | Some(BoxPhase::Starting { .. })),
        // These are reconciled when they are due.
        (Some(Status::Terminating | Status::Terminated | Status::Failed), _) => false,
        // A newer version's: its box is kept.
        (None, _) => false,
    };
    Differences {
        reconcile: rows
            .iter()
            .filter(|row| needs_reconcile(row))
            .map(|row| row.id.clone())
            .collect(),
        orphans: boxes
            .keys()
            .filter(|id| !active.contains(*id))
            .map(|id| (*id).clone())
            .collect(),
    }
}

/// Reconciles the changes that one cluster reports, and compares everything at each
/// `interval` and whenever the watch was interrupted, until `held` is cancelled.
pub async fn run(
    store: &Store,
    cluster: &Cluster,
    reconciler: &Arc<Reconciler>,
    interval: Duration,
    held: CancellationToken,
) {
    let Some(runtime) = cluster.runtime().cloned() else {
        return;
    };
    let resync = Notify::new();
    let watching = watch(cluster, &*runtime, reconciler, &resync, &held);
    let comparing = async {
        let mut suspects = BTreeSet::new();
        while !held.is_cancelled() {
            let compared = compare_once(store, cluster, &*runtime, reconciler, &mut suspects).await;
            if let Err(error) = compared {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    cluster = cluster.name,
                    "boxes and rows not compared"
                );
            }
            tokio::select! {
                () = held.cancelled() => {}
                () = resync.notified() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    };
    tokio::join!(watching, comparing);
}

/// Reconciles the environments whose boxes changed. Notifies `resync` when the watch was
/// interrupted and may have missed changes.
async fn watch(
    cluster: &Cluster,
    runtime: &dyn Runtime,
    reconciler: &Arc<Reconciler>,
    resync: &Notify,
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
                            resync.notify_one();
                        }
                        change.id
                    });
                reconcile_all(reconciler, ids, "watch").await;
            }
            Err(error) => {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    cluster = cluster.name,
                    "cluster not watched"
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
    trigger: &'static str,
) {
    ids.for_each_concurrent(CONCURRENCY, |id| {
        let span = tracing::info_span!(parent: None, "reconcile", otel.name = format!("reconcile {trigger}"), environment.id = %id);
        async move {
            if let Err(error) = reconciler.reconcile(&id).await {
                tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "environment not reconciled");
            }
        }
        .instrument(span)
    })
    .await;
}

/// Compares once; `suspects` are the orphans that the comparison before found.
async fn compare_once(
    store: &Store,
    cluster: &Cluster,
    runtime: &dyn Runtime,
    reconciler: &Arc<Reconciler>,
    suspects: &mut BTreeSet<EnvironmentId>,
) -> Result<(), CompareError> {
    // In this order: a row is written before its box is created, so the rows include that of
    // every listed box.
    let boxes = runtime.list().await?;
    let rows = store.active_in_cluster(&cluster.name).await?;
    let Differences { reconcile, orphans } = differences(&boxes, &rows);
    let candidates: Vec<EnvironmentId> = orphans.iter().cloned().collect();
    let ended: BTreeSet<EnvironmentId> = if candidates.is_empty() {
        BTreeSet::new()
    } else {
        store
            .ended_without_box(&candidates)
            .await?
            .into_iter()
            .collect()
    };
    for id in &orphans {
        if !ended.contains(id) && !suspects.contains(id) {
            continue;
        }
        let span = tracing::info_span!(parent: None, "remove", otel.name = "remove orphan", environment.id = %id);
        match runtime.remove(id).instrument(span).await {
            Ok(()) => {
                metrics::orphan_removed();
                tracing::warn!(environment.id = %id, cluster = cluster.name, "orphaned box removed");
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "orphaned box not removed")
            }
        }
    }
    *suspects = orphans;
    metrics::compared(&cluster.name, Utc::now());
    reconcile_all(reconciler, futures::stream::iter(reconcile), "compare").await;
    Ok(())
}
