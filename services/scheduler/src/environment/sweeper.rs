//! Periodic work that one replica does for all: ending expired and idle environments and those that
//! are left after a drain, and purging rows past their retention. When that replica is killed, another
//! takes over once its lease expires. Every replica counts rows for the metrics.
//!
//! * I1. An environment ends as idle only after its box was asked, because reports of activity may
//!   have been lost. Without an answer it stays.

use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::ACTIVITY_INTERVAL_S;
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::ActivityRequest;
use agentbox_contracts::exec::rpc::GetActivity;
use agentbox_contracts::ids::EnvironmentId;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::cluster::registry::Clusters;
use crate::environment::handlers::Environments;
use crate::environment::state::EndReason;
use crate::environment::store::Store;
use crate::metrics;

const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
const EXPIRY_BATCH: u32 = 256;
const DRAIN_INTERVAL: Duration = Duration::from_secs(2);
const DRAIN_BATCH: u32 = 256;
/// How often each replica reads which clusters take new environments.
const SCHEDULING_INTERVAL: Duration = Duration::from_secs(1);
const IDLE_INTERVAL: Duration = Duration::from_secs(ACTIVITY_INTERVAL_S);
/// Reports of activity come first when the schedulers did not run for a while.
const IDLE_START_DELAY: Duration = Duration::from_secs(2 * ACTIVITY_INTERVAL_S);
const IDLE_BATCH: u32 = 4096;
/// Boxes that are asked at a time.
const IDLE_CHECKS: usize = 32;
const ACTIVITY_DEADLINE: Duration = Duration::from_secs(3);
const STATISTICS_INTERVAL: Duration = Duration::from_secs(10);
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

/// Ends environments that are left in a cluster at the deadline of its drain, until `held` is
/// cancelled.
pub async fn run_drains(environments: &Environments, held: CancellationToken) {
    while !held.is_cancelled() {
        match environments.store().left_after_drain(DRAIN_BATCH).await {
            Ok(left) => {
                for record in left {
                    let id = record.environment.id.clone();
                    if let Err(error) = environments.end(record, EndReason::Drained, false).await {
                        tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "environment of a drained cluster not ended; retried");
                    }
                }
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "environments of drained clusters not read");
            }
        }
        pause(DRAIN_INTERVAL, &held).await;
    }
}

/// Keeps this replica's knowledge of which clusters take new environments, until `shutdown`. Every
/// replica does this.
pub async fn run_scheduling(environments: &Environments, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        if let Err(error) = environments.refresh_scheduling().await {
            tracing::warn!(error = %ErrorChain(&error), "states of clusters not read; retried");
        }
        pause(SCHEDULING_INTERVAL, &shutdown).await;
    }
}

/// Ends idle environments until `held` is cancelled.
pub async fn run_idle(environments: &Environments, bus: &Bus, held: CancellationToken) {
    pause(IDLE_START_DELAY, &held).await;
    while !held.is_cancelled() {
        match environments.store().idle(IDLE_BATCH).await {
            Ok(idle) => {
                let held = &held;
                futures::stream::iter(idle)
                    .for_each_concurrent(IDLE_CHECKS, |id| async move {
                        if held.is_cancelled() {
                            return;
                        }
                        if let Err(error) = end_if_idle(environments, bus, &id).await {
                            tracing::warn!(error = %ErrorChain(&error), environment.id = %id, "idle environment not ended; retried");
                        }
                    })
                    .await;
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "idle environments not read");
            }
        }
        pause(IDLE_INTERVAL, &held).await;
    }
}

/// Ends an environment that was idle for its idle timeout, unless its box is in use.
///
/// # Errors
/// When the box does not answer, or the database fails.
pub async fn end_if_idle(
    environments: &Environments,
    bus: &Bus,
    id: &EnvironmentId,
) -> Result<(), Error> {
    let store = environments.store();
    let Some(record) = store.find_idle(id).await? else {
        return Ok(());
    };
    let Some(address) = record.environment.address else {
        return Ok(());
    };
    let request = ActivityRequest {
        environment: id.clone(),
        address,
    };
    let cluster = &record.environment.cluster;
    let activity = bus
        .call_cluster::<GetActivity>(cluster, &request, ACTIVITY_DEADLINE)
        .await?;
    let idle = Duration::from_millis(activity.idle_ms);
    store.record_idle(id, idle).await?;
    // Read again: it may have been used or changed meanwhile.
    if let Some(record) = store.find_idle(id).await? {
        environments.end(record, EndReason::Idle, false).await?;
    }
    Ok(())
}

/// Reports counts of rows, and the capacity of the clusters, until `shutdown`. Every replica does so.
pub async fn run_statistics(store: &Store, clusters: &Clusters, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        for cluster in clusters.iter() {
            metrics::cluster(&cluster.name, cluster.capacity.current().as_ref());
        }
        match store.statistics().await {
            Ok(statistics) => {
                let names = clusters.iter().map(|cluster| cluster.name.as_str());
                metrics::statistics(&statistics, names);
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "rows not counted for the metrics");
            }
        }
        pause(STATISTICS_INTERVAL, &shutdown).await;
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
