//! exec-proxy: forwards user input and output, in order, between the bus and the boxes.
//!
//! Owns the open sessions and the connections to boxes. Never creates or deletes an
//! environment, and never authorizes. It stores no state: when an exec-proxy is killed,
//! boxd kills its commands, and the gateways' sessions end with an error.
//!
//! From the outside in:
//!
//! * [`clusters`]: the served clusters, and the driver that connects to their boxes.
//! * `session`: accepts sessions from the bus, limits them, and dispatches each.
//! * `fair_share`: how many sessions one owner may have.
//! * `exec`, `logs`, `files`, `executions`, `ports`: the kinds of session.
//! * `relay`: a session that is one call of boxd.
//! * `target`: the environment of a session.
//! * `usage`, `activity`, [`archive`]: requests with one reply, and reports of activity.
//! * [`boxes`]: connections to boxd, and commands in boxes.
//! * `outcome`: the ways to end a session.

mod activity;
pub mod archive;
pub mod boxes;
pub mod clusters;
pub mod config;
mod exec;
mod executions;
mod fair_share;
mod files;
mod logs;
mod metrics;
mod outcome;
mod ports;
mod relay;
mod session;
mod target;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, BusError};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::exec::rpc::{
    ArchiveOutput, GetActivity, GetExecutions, GetUsage, MeterUsage,
};
use agentbox_service::{Context, ServiceFuture};
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::boxes::{BoxSpans, Boxes};
use crate::clusters::Cluster;
pub use crate::config::Config;
use crate::config::{Limits, SERVICE};
#[cfg(fuzzing)]
pub use crate::logs::select as select_logs;

/// The pause before connecting to an unreachable cluster again.
const CLUSTER_RETRY: Duration = Duration::from_secs(2);

/// Starts serving every cluster of the clusters file.
///
/// # Errors
/// When the clusters file or the secret cannot be used, or the bus refuses.
pub fn run(config: Config, context: Context) -> ServiceFuture {
    Box::pin(start(config, context))
}

async fn start(config: Config, context: Context) -> Result<(), anyhow::Error> {
    metrics::describe();
    let specs = agentbox_clusters::read(&config.clusters)?;
    let specs = clusters::select(specs, config.cluster.as_deref())?;
    let limits = config.limits();
    context
        .bus
        .wait_for_streams(SERVICE)
        .await
        .context("the output archive does not exist")?;

    let ready = context.readiness.component("clusters");
    ready.not_ready("no cluster is reachable yet");
    let spans = BoxSpans::new(context.relayed_spans("boxd")?);
    for spec in specs {
        let (context, limits, ready) = (context.clone(), limits.clone(), ready.clone());
        let spans = spans.clone();
        let secret = config.box_secret.clone();
        context.tasks.clone().spawn("cluster", async move {
            let connector = loop {
                let error = match spec.connector() {
                    Ok(connector) => break connector,
                    Err(error) => error,
                };
                tracing::warn!(
                    cluster = spec.name,
                    error = %ErrorChain(&error),
                    "connecting to the cluster failed; trying again"
                );
                tokio::select! {
                    () = context.shutdown.cancelled() => return Ok(()),
                    () = tokio::time::sleep(CLUSTER_RETRY) => {}
                }
            };
            let boxes = Boxes::new(connector, secret, limits.clone(), spans);
            let cluster = Cluster {
                name: spec.name,
                boxes,
            };
            ready.ready();
            serve(cluster, limits, context.bus, context.shutdown).await?;
            Ok(())
        });
    }
    Ok(())
}

/// Serves one cluster until shutdown: its sessions, its requests, the reports of its activity, and the
/// eviction of idle connections.
///
/// # Errors
/// When the bus refuses a subscription.
pub async fn serve(
    cluster: Cluster,
    limits: Limits,
    bus: Bus,
    shutdown: CancellationToken,
) -> Result<(), BusError> {
    let cluster = Arc::new(cluster);
    let archive = Archive::new(bus.clone(), limits.archived_output);
    tracing::info!(cluster = cluster.name, "serving the cluster");
    let requests = requests(&bus, &cluster, &archive).listen().await?;
    let requests = requests.run(shutdown.clone());
    let eviction = cluster.boxes.evict_idle(&cluster.name, shutdown.clone());
    let reporter = bus.clone();
    let reports = activity::report(cluster.boxes.in_use().clone(), &reporter, shutdown.clone());
    let sessions = session::serve(bus, Arc::clone(&cluster), archive, limits, shutdown.clone());
    // When one fails, the others are dropped and the service stops.
    let background = async {
        tokio::join!(eviction, reports);
        Ok(())
    };
    tokio::try_join!(sessions, requests, background)?;
    Ok(())
}

fn requests(bus: &Bus, cluster: &Arc<Cluster>, archive: &Archive) -> agentbox_bus::Server {
    let usage_cluster = Arc::clone(cluster);
    let meter_cluster = Arc::clone(cluster);
    let activity_cluster = Arc::clone(cluster);
    let executions_cluster = Arc::clone(cluster);
    let archive_cluster = Arc::clone(cluster);
    let archive = archive.clone();
    bus.serve(SERVICE)
        .on_cluster::<GetUsage, _, _>(&cluster.name, move |request| {
            let cluster = Arc::clone(&usage_cluster);
            async move { usage::answer(&cluster, request).await }
        })
        .on_cluster::<MeterUsage, _, _>(&cluster.name, move |request| {
            let cluster = Arc::clone(&meter_cluster);
            async move { usage::meter(&cluster, request).await }
        })
        .on_cluster::<GetActivity, _, _>(&cluster.name, move |request| {
            let cluster = Arc::clone(&activity_cluster);
            async move { activity::answer(&cluster, request).await }
        })
        .on_cluster::<GetExecutions, _, _>(&cluster.name, move |request| {
            let cluster = Arc::clone(&executions_cluster);
            async move { executions::states::answer(&cluster, request).await }
        })
        .on_cluster::<ArchiveOutput, _, _>(&cluster.name, move |request| {
            let (cluster, archive) = (Arc::clone(&archive_cluster), archive.clone());
            async move { archive::answer(&cluster, &archive, request).await }
        })
}
