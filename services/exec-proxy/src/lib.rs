//! exec-proxy: user input and output, in order, between the bus and the boxes.
//!
//! Owns the sessions in flight and the connections to boxes. Never creates or deletes an
//! environment, never decides who may do what, and keeps nothing that matters when it
//! dies: a command whose exec-proxy is gone is killed by its box, and the other end of
//! the session gets an error.
//!
//! * [`clusters`]: which clusters are served, and the driver that reaches their boxes.
//! * `session`: takes sessions from the bus, bounds them, hands each to its noun.
//! * `exec`, `attach`, `logs`: what a session can be.
//! * `usage`, [`archive`]: requests with one answer.
//! * [`boxes`]: connections to boxd, and commands that run there.

pub mod archive;
mod attach;
pub mod boxes;
pub mod clusters;
pub mod config;
mod exec;
mod logs;
mod metrics;
mod session;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, BusError};
use agentbox_contracts::exec::rpc::{ArchiveOutput, GetUsage};
use agentbox_service::Context;
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::boxes::{BoxSpans, Boxes};
use crate::clusters::Cluster;
pub use crate::config::Config;
use crate::config::Limits;

/// The name of this service on the bus.
const SERVICE: &str = "exec-proxy";

/// How long an unreachable cluster is left alone before the next try.
const CLUSTER_RETRY: Duration = Duration::from_secs(2);

/// Starts serving every cluster of the clusters file.
///
/// # Errors
/// When the clusters file or the secret cannot be used, or the bus refuses.
pub async fn run(config: Config, context: Context) -> Result<(), anyhow::Error> {
    metrics::describe();
    let specs = agentbox_clusters::read(&config.clusters)?;
    let specs = clusters::chosen(specs, config.cluster.as_deref())?;
    let limits = config.limits();
    context
        .bus
        .ensure_streams(SERVICE)
        .await
        .context("the output archive cannot be set up")?;

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
                    error = &error as &dyn std::error::Error,
                    "the cluster is not served yet; trying again"
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

/// Serves one cluster until shutdown: its sessions, its requests, and the upkeep of its
/// connections.
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
    let archive = Archive::new(bus.clone());
    tracing::info!(cluster = cluster.name, "serving");
    let requests = requests(&bus, &cluster, &archive).listen().await?;
    let requests = requests.run(shutdown.clone());
    let upkeep = cluster.boxes.keep_tidy(&cluster.name, shutdown.clone());
    let sessions = session::serve(bus, Arc::clone(&cluster), archive, limits, shutdown.clone());
    // One that fails ends the others too: the service stops whole.
    let upkeep = async {
        upkeep.await;
        Ok(())
    };
    tokio::try_join!(sessions, requests, upkeep)?;
    Ok(())
}

fn requests(bus: &Bus, cluster: &Arc<Cluster>, archive: &Archive) -> agentbox_bus::Server {
    let usage_of = Arc::clone(cluster);
    let archive_of = Arc::clone(cluster);
    let archive = archive.clone();
    bus.serve(SERVICE)
        .on_cluster::<GetUsage, _, _>(&cluster.name, move |request| {
            let cluster = Arc::clone(&usage_of);
            async move { usage::answer(&cluster, request).await }
        })
        .on_cluster::<ArchiveOutput, _, _>(&cluster.name, move |request| {
            let (cluster, archive) = (Arc::clone(&archive_of), archive.clone());
            async move { archive::answer(&cluster, &archive, request).await }
        })
}
