//! Starts one part each, and waits until it is ready.

use std::time::Duration;

use super::SuperviseError;
use super::board::Board;
use super::layer::{Layer, ready};
use super::probe::answers;
use crate::containerd::{Containerd, Paths};
use crate::image::{self, Images};
use crate::nats::{Nats, NatsError};
use crate::plan::{Layout, Plan, cache_directory};
use crate::postgres::Postgres;
use crate::secrets::Secrets;

pub(super) async fn postgres(
    layout: &Layout,
    plan: &Plan,
    secrets: &Secrets,
    layer: &mut Layer,
    port: u16,
) -> Result<Postgres, SuperviseError> {
    let mount_point = crate::containerd::postgres_mount(&layer.board().deployment());
    let postgres = Postgres::prepare(
        &layout.postgres(),
        &mount_point,
        port,
        &secrets.postgres,
        plan.durable,
    )
    .await?;
    layer.keep(postgres.launch(layout.log("postgres")), None);
    layer
        .until_ready("postgres", Duration::from_secs(60), || async {
            ready(
                postgres.is_ready().await,
                "it does not accept connections yet",
            )
        })
        .await?;
    postgres.bootstrap(&secrets.postgres).await?;
    layer.board().say("postgres is ready");
    Ok(postgres)
}

pub(super) async fn nats(
    layout: &Layout,
    plan: &Plan,
    secrets: &Secrets,
    layer: &mut Layer,
    ports: (u16, u16),
) -> Result<Nats, SuperviseError> {
    let deployment = layer.board().deployment();
    let program = crate::nats::server::find_or_fetch(&cache_directory())
        .await
        .map_err(NatsError::from)?;
    let directory = layout.nats();
    let nats = Nats::prepare(
        &directory,
        &deployment,
        ports,
        &secrets.nats,
        plan.durable,
        program,
    )?;
    layer.keep(nats.launch(layout.log("nats")), None);
    let http = reqwest::Client::new();
    let health = format!("{}/healthz", nats.endpoint.monitor_url);
    layer
        .until_ready("nats", Duration::from_secs(30), || {
            answers(&http, health.clone())
        })
        .await?;
    layer.board().say("nats is ready");
    Ok(nats)
}

/// What boxes start from, whichever cluster they are on.
pub(super) async fn images(board: &Board) -> Result<Images, SuperviseError> {
    let images = image::provide(&cache_directory(), |step| board.say(&step)).await?;
    if let Some(remark) = images.remark {
        board.say(remark);
    }
    Ok(images)
}

pub(super) async fn containerd(
    layout: &Layout,
    plan: &Plan,
    layer: &mut Layer,
    paths: Paths,
    images: &Images,
) -> Result<Containerd, SuperviseError> {
    let containerd = Containerd::prepare(paths, &plan.boxd, images).await?;
    layer.keep(containerd.launch(layout.log("containerd")), None);
    let socket = containerd.paths.socket();
    layer
        .until_ready("containerd", Duration::from_secs(30), || async {
            let cri = crate::containerd::cri::Cri::connect(&socket).await;
            match cri {
                Ok(cri) => cri.ready().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
    // The boxes of a run that was killed are still in its database.
    crate::containerd::cri::Cri::connect(&socket)
        .await?
        .remove_all()
        .await?;
    containerd.import(images).await?;
    layer.board().say("containerd is ready");
    Ok(containerd)
}
