//! Starts one component each, and waits until it is ready.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use agentbox_testing::paths::{Layout, cache_directory};
use agentbox_testing::plan::Plan;
use nix::sys::signal::Signal;

use super::SuperviseError;
use super::probe::probe;
use super::process_group::{ProcessGroup, ready_or};
use super::state_file::StateFile;
use crate::cluster_paths::{ClusterPaths, postgres_mount};
use crate::containerd::cri::Cri;
use crate::containerd::{Containerd, ContainerdError};
use crate::image::{self, Images};
use crate::kubernetes::build;
use crate::nats::{Nats, NatsError, server};
use crate::ports::Ports;
use crate::postgres::Postgres;
use crate::process::ProcessSpec;
use crate::secrets::Secrets;

/// The name of the proxy between containerd and the registries.
const REGISTRY_PROXY: &str = "registry-proxy";

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

/// Starts the proxy between containerd and the registries. `None`: the machine has an HTTP proxy, which
/// containerd uses and which decides what a pull may reach. A plan that configures the proxy has it.
pub(super) async fn registry_proxy(
    layout: &Layout,
    plan: &Plan,
    group: &mut ProcessGroup,
    ports: &mut Ports,
) -> Result<Option<SocketAddr>, SuperviseError> {
    let environment = plan.environment.get(REGISTRY_PROXY).cloned();
    let is_set = |name: &&str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    if environment.is_none()
        && let Some(name) = ["HTTPS_PROXY", "https_proxy"].into_iter().find(is_set)
    {
        let step = format!("images are pulled through {name}, without the registry proxy");
        group.state_file().log_step(&step);
        return Ok(None);
    }
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ports.take()?);
    let program = std::env::current_exe().map_err(|source| SuperviseError::Directory {
        path: "the program agentbox-local".to_owned(),
        source,
    })?;
    let spec = ProcessSpec {
        name: REGISTRY_PROXY.to_owned(),
        program,
        program_override: None,
        environment_file: None,
        arguments: ["registry-proxy", "--listen", &address.to_string()]
            .map(OsString::from)
            .to_vec(),
        environment: environment.unwrap_or_default(),
        user: None,
        stop_signal: Signal::SIGTERM,
        orphan_signal: Signal::SIGKILL,
        grace: Duration::from_secs(5),
        log: layout.log(REGISTRY_PROXY),
    };
    group.supervise(spec, None);
    let http = reqwest::Client::new();
    group
        .wait_ready(REGISTRY_PROXY, Duration::from_secs(30), || {
            probe(&http, format!("http://{address}/v2/"))
        })
        .await?;
    Ok(Some(address))
}

pub(super) async fn containerd(
    layout: &Layout,
    plan: &Plan,
    group: &mut ProcessGroup,
    paths: ClusterPaths,
    images: &Images,
    registry_proxy: Option<SocketAddr>,
) -> Result<Containerd, SuperviseError> {
    let state_file = group.state_file().clone();
    let programs = build::provide_runtime(&cache_directory(), |step| state_file.log_step(&step))
        .await
        .map_err(ContainerdError::from)?;
    let mut containerd =
        Containerd::prepare(paths, &programs, &plan.boxd, images, registry_proxy).await?;
    containerd
        .endpoint
        .network_bandwidth
        .clone_from(&plan.network_bandwidth);
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
