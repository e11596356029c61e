//! Starts one component each, and waits until it is ready.

use std::time::Duration;

use agentbox_testing::paths::{Layout, cache_directory};
use agentbox_testing::plan::Plan;

use super::SuperviseError;
use super::probe::probe;
use super::process_group::{ProcessGroup, ready_or};
use super::state_file::StateFile;
use crate::cluster_paths::{ClusterPaths, postgres_mount};
use crate::containerd::Containerd;
use crate::containerd::cri::Cri;
use crate::image::{self, Images};
use crate::nats::{Nats, NatsError, server};
use crate::postgres::Postgres;
use crate::secrets::Secrets;

pub(super) async fn postgres(
    layout: &Layout,
    plan: &Plan,
    secrets: &Secrets,
    group: &mut ProcessGroup,
    port: u16,
) -> Result<Postgres, SuperviseError> {
    let mount_point = postgres_mount(&group.state_file().deployment());
    let postgres = Postgres::prepare(
        &layout.postgres(),
        &mount_point,
        port,
        &secrets.postgres,
        plan.durable,
    )
    .await?;
    group.supervise(postgres.process_spec(layout.log("postgres")), None);
    group
        .wait_ready("postgres", Duration::from_secs(60), || async {
            ready_or(
                postgres.is_ready().await,
                "it does not accept connections yet",
            )
        })
        .await?;
    postgres.bootstrap(&secrets.postgres).await?;
    group.state_file().log_step("postgres is ready");
    Ok(postgres)
}

pub(super) async fn nats(
    layout: &Layout,
    plan: &Plan,
    secrets: &Secrets,
    group: &mut ProcessGroup,
    ports: (u16, u16),
) -> Result<Nats, SuperviseError> {
    let deployment = group.state_file().deployment();
    let program = server::find_or_fetch(&cache_directory())
        .await
        .map_err(NatsError::from)?;
    let directory = layout.nats();
    let nats = Nats::prepare(&directory, &deployment, ports, &secrets.nats, plan, program).await?;
    group.supervise(nats.process_spec(layout.log("nats")), None);
    let http = reqwest::Client::new();
    let health = format!("{}/healthz", nats.endpoint.monitor_url);
    group
        .wait_ready("nats", Duration::from_secs(30), || {
            probe(&http, health.clone())
        })
        .await?;
    nats.create_streams().await?;
    group.state_file().log_step("nats is ready");
    Ok(nats)
}

/// Builds the images that the clusters import.
pub(super) async fn images(state_file: &StateFile) -> Result<Images, SuperviseError> {
    let images = image::provide(&cache_directory(), |step| state_file.log_step(&step)).await?;
    if let Some(notice) = images.notice {
        state_file.log_step(notice);
    }
    Ok(images)
}

pub(super) async fn containerd(
    layout: &Layout,
    plan: &Plan,
    group: &mut ProcessGroup,
    paths: ClusterPaths,
    images: &Images,
) -> Result<Containerd, SuperviseError> {
    let containerd = Containerd::prepare(paths, &plan.boxd, images).await?;
    group.supervise(containerd.process_spec(layout.log("containerd")), None);
    let socket = containerd.paths.socket();
    group
        .wait_ready("containerd", Duration::from_secs(30), || async {
            match Cri::connect(&socket).await {
                Ok(cri) => cri.ready().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
    // containerd's database still contains the boxes of a supervisor that was killed.
    Cri::connect(&socket).await?.remove_all().await?;
    containerd.import(images).await?;
    group.state_file().log_step("containerd is ready");
    Ok(containerd)
}
