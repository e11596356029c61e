//! Reads what a system uses: the memory, descriptors and processor time of its services, and the objects that
//! it has in containerd, the kernel, NATS and Postgres.
//!
//! Only of a system that was started for the measurement. Containers, sandboxes and the processes in boxes
//! are known on containerd only.

pub mod leaks;
pub mod processes;

use agentbox_testing::System;
use anyhow::Context as _;
use k8s_cri::v1::{ListContainersRequest, ListPodSandboxRequest};
use serde::Deserialize;

use crate::http::Http;
use crate::target::Target;

pub const SERVICES: [&str; 5] = [
    "api-gateway",
    "auth",
    "scheduler",
    "exec-proxy",
    NEWEST_SERVICE,
];
/// An older commit, which `make bench-compare` measures, does not have it.
const NEWEST_SERVICE: &str = "webhooks";
/// The clients of Postgres, without the one that asks.
const POSTGRES_CONNECTIONS: &str = "SELECT count(*) FROM pg_stat_activity \
     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";

/// The kind of a resource decides how much more of it is a leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In MiB.
    Memory,
    Descriptors,
    Connections,
    /// Containers, mounts and consumers, which belong to an environment or a request.
    Objects,
}

impl Kind {
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Memory => "MiB",
            Self::Descriptors => "descriptors",
            Self::Connections => "connections",
            Self::Objects => "objects",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub name: String,
    pub kind: Kind,
    pub value: f64,
}

impl Resource {
    fn new(name: impl Into<String>, kind: Kind, value: f64) -> Self {
        Self {
            name: name.into(),
            kind,
            value,
        }
    }
}

#[derive(Deserialize)]
struct JetStream {
    consumers: u64,
}

#[derive(Deserialize)]
struct Server {
    connections: u64,
}

/// Reads all resources once.
///
/// # Errors
/// When a service, NATS, Postgres or containerd does not answer.
pub async fn read(target: &Target) -> anyhow::Result<Vec<Resource>> {
    let system = target.require_new_system()?;
    let mut resources = of_services(system)?;
    let nats = system.nats.as_ref().context("a system without NATS")?;
    let monitor = Http::new(&nats.monitor_url, None)?;
    let jetstream: JetStream = monitor.get_json("/jsz").await?;
    let server: Server = monitor.get_json("/varz").await?;
    let postgres = system.postgres.as_ref();
    let postgres = postgres.context("a system without Postgres")?;
    let connections = postgres.execute(&[POSTGRES_CONNECTIONS]).await?;
    let connections: u64 = connections.trim().parse().context("counting connections")?;
    resources.extend([
        Resource::new(
            "consumers of NATS",
            Kind::Objects,
            jetstream.consumers as f64,
        ),
        Resource::new(
            "connections of NATS",
            Kind::Connections,
            server.connections as f64,
        ),
        Resource::new(
            "connections of Postgres",
            Kind::Connections,
            connections as f64,
        ),
    ]);
    resources.extend(of_containerd(target, system).await?);
    Ok(resources)
}

/// The processes of each service.
///
/// # Errors
/// When a service does not run that every commit has.
pub fn services(system: &System) -> anyhow::Result<Vec<(&'static str, Vec<u32>)>> {
    let mut all = Vec::new();
    for service in SERVICES {
        let pids: Vec<u32> = system.pids(service).into_values().collect();
        if pids.is_empty() && service == NEWEST_SERVICE {
            continue;
        }
        anyhow::ensure!(!pids.is_empty(), "{service} does not run");
        all.push((service, pids));
    }
    Ok(all)
}

/// The memory and the descriptors of all replicas of each service.
fn of_services(system: &System) -> anyhow::Result<Vec<Resource>> {
    let mut resources = Vec::new();
    for (service, pids) in services(system)? {
        let (mut memory, mut descriptors) = (0.0, 0.0);
        for pid in pids {
            memory += processes::resident_mib(pid);
            descriptors += processes::descriptors(pid) as f64;
        }
        resources.push(Resource::new(
            format!("memory of {service}"),
            Kind::Memory,
            memory,
        ));
        resources.push(Resource::new(
            format!("descriptors of {service}"),
            Kind::Descriptors,
            descriptors,
        ));
    }
    Ok(resources)
}

async fn of_containerd(target: &Target, system: &System) -> anyhow::Result<Vec<Resource>> {
    let Some(mut cri) = target.cri().await? else {
        return Ok(Vec::new());
    };
    let sandboxes = cri.list_pod_sandbox(ListPodSandboxRequest::default());
    let sandboxes = sandboxes.await?.into_inner().items.len();
    let containers = cri.list_containers(ListContainersRequest::default());
    let containers = containers.await?.into_inner().containers.len();
    let containerd = system.pids("containerd").into_values().next();
    let mounts = containerd.map_or(0, processes::mounts);
    Ok(vec![
        Resource::new("sandboxes", Kind::Objects, sandboxes as f64),
        Resource::new("containers", Kind::Objects, containers as f64),
        Resource::new("mounts", Kind::Objects, mounts as f64),
    ])
}
