//! Single components for the tests of crates below the services: a database, a NATS server, a
//! containerd, a Kubernetes.
//!
//! Postgres and NATS are started once for a test program and shared by its tests: each test
//! uses a database, and subjects or streams, of its own. They end with the program.

use std::path::Path;
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::cluster::{Cluster, Endpoint};
use crate::endpoint::containerd::ContainerdEndpoint;
use crate::endpoint::kubernetes::KubernetesEndpoint;
use crate::endpoint::nats::NatsEndpoint;
use crate::endpoint::postgres::PostgresEndpoint;
use crate::instance::StartError;
use crate::paths::{agentbox_local, bin_dir};
use crate::plan::Components;
use crate::system::{Options, System};
use crate::tool::Tool;

static POSTGRES: OnceCell<System> = OnceCell::const_new();
static NATS: OnceCell<System> = OnceCell::const_new();

/// The deadline for building the programs of a Kubernetes with an empty cache.
const BUILD_DEADLINE: Duration = Duration::from_secs(3_600);

async fn start(components: Components) -> Result<System, StartError> {
    System::start(Options::components(components)).await
}

fn missing(system: &System, component: &str) -> StartError {
    StartError::Failed {
        message: format!("{component} was not started"),
        logs: system.logs(),
    }
}

/// An empty database on this test program's Postgres.
#[derive(Clone, Debug)]
pub struct TestPostgres {
    /// The superuser's URL of a database that no other test uses.
    pub url: String,
    pub endpoint: PostgresEndpoint,
}

impl TestPostgres {
    /// # Errors
    /// When Postgres cannot be started or refuses the new database.
    pub async fn start() -> Result<Self, StartError> {
        let components = Components {
            postgres: true,
            ..Components::NONE
        };
        let system = POSTGRES.get_or_try_init(|| start(components)).await?;
        let endpoint = system
            .postgres
            .clone()
            .ok_or_else(|| missing(system, "postgres"))?;
        let url = endpoint
            .create_database()
            .await
            .map_err(|error| StartError::Failed {
                message: error.to_string(),
                logs: system.logs(),
            })?;
        Ok(Self { url, endpoint })
    }
}

/// This test program's NATS server.
#[derive(Debug)]
pub struct TestNats;

impl TestNats {
    /// The server that the tests of this program share.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn shared() -> Result<NatsEndpoint, StartError> {
        let components = Components {
            nats: true,
            ..Components::NONE
        };
        let system = NATS.get_or_try_init(|| start(components)).await?;
        system.nats.clone().ok_or_else(|| missing(system, "nats"))
    }

    /// A server for the caller alone, to kill (`system.kill("nats", 0)`), stop and resume.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn own() -> Result<(System, NatsEndpoint), StartError> {
        let system = start(Components {
            nats: true,
            ..Components::NONE
        })
        .await?;
        let endpoint = system
            .nats
            .clone()
            .ok_or_else(|| missing(&system, "nats"))?;
        Ok((system, endpoint))
    }
}

/// A private containerd with the images python:3.11-slim and busybox. It ends with the value.
#[derive(Debug)]
pub struct TestContainerd {
    pub endpoint: ContainerdEndpoint,
    pub system: System,
}

impl TestContainerd {
    /// # Errors
    /// When it cannot be started: not root, or a package is missing.
    pub async fn start() -> Result<Self, StartError> {
        let system = start(Components {
            containerd: true,
            ..Components::NONE
        })
        .await?;
        let endpoint = system
            .containerd
            .clone()
            .ok_or_else(|| missing(&system, "containerd"))?;
        Ok(Self { endpoint, system })
    }

    /// Imports images of a program that prints the ids of its process, as `/ids`. Each has a name
    /// and its `config` object as JSON.
    ///
    /// # Errors
    /// When one cannot be built, or containerd refuses it.
    pub async fn import_accounts(&self, images: &[(String, String)]) -> Result<(), StartError> {
        let containerd = self.endpoint.clone();
        import_accounts(Endpoint::Containerd { containerd }, images).await
    }
}

/// A Kubernetes of one node with the images python:3.11-slim and busybox. It ends with the
/// value.
#[derive(Debug)]
pub struct TestKubernetes {
    pub endpoint: KubernetesEndpoint,
    pub system: System,
}

impl TestKubernetes {
    /// # Errors
    /// When it cannot be started: not root, or something is not installed or not built.
    pub async fn start() -> Result<Self, StartError> {
        let system = start(Components {
            kubernetes: true,
            ..Components::NONE
        })
        .await?;
        let endpoint = system
            .kubernetes
            .clone()
            .ok_or_else(|| missing(&system, "kubernetes"))?;
        Ok(Self { endpoint, system })
    }

    /// Installs CoreDNS for the cluster's own names.
    ///
    /// # Errors
    /// When it cannot be built or imported, or the API server refuses it.
    pub async fn add_dns(&self) -> Result<(), StartError> {
        let endpoint = serde_json::json!(self.endpoint).to_string();
        kubernetes_command(&["add-dns", &endpoint]).await?;
        Ok(())
    }

    /// As [`TestContainerd::import_accounts`], into the node's containerd.
    ///
    /// # Errors
    /// When one cannot be built, or the node's containerd refuses it.
    pub async fn import_accounts(&self, images: &[(String, String)]) -> Result<(), StartError> {
        let kubernetes = self.endpoint.clone();
        import_accounts(Endpoint::Kubernetes { kubernetes }, images).await
    }

    /// Pushes an image with one static program, as `/<its file name>`, to the cluster's
    /// registry as `name`; gives the image's full name there.
    ///
    /// # Errors
    /// When the image cannot be built or the registry refuses it.
    pub async fn push_program(&self, program: &Path, name: &str) -> Result<String, StartError> {
        let endpoint = serde_json::json!(self.endpoint).to_string();
        let program = program.display().to_string();
        let image = kubernetes_command(&["push-program", &endpoint, &program, name]).await?;
        Ok(image.trim().to_owned())
    }
}

/// Builds the programs of a Kubernetes that are not in the cache. The start of a system does the
/// same, but within its own shorter deadline.
///
/// # Errors
/// When one cannot be built.
pub async fn build_kubernetes() -> Result<(), StartError> {
    kubernetes_command(&["build"]).await?;
    Ok(())
}

async fn import_accounts(
    endpoint: Endpoint,
    images: &[(String, String)],
) -> Result<(), StartError> {
    let cluster = serde_json::json!(Cluster::new("local", endpoint)).to_string();
    let images = images
        .iter()
        .map(|(name, config)| format!("{name}={config}"));
    Tool::new(agentbox_local(&bin_dir())?)
        .args(["import-accounts", cluster.as_str()])
        .args(images)
        .within(BUILD_DEADLINE)
        .run()
        .await?;
    Ok(())
}

async fn kubernetes_command(arguments: &[&str]) -> Result<String, StartError> {
    let program = agentbox_local(&bin_dir())?;
    let output = Tool::new(program)
        .args(["kubernetes"])
        .args(arguments)
        .within(BUILD_DEADLINE)
        .run()
        .await?;
    Ok(output)
}
