//! Single parts for the tests of crates below the services: a database, a NATS server,
//! a containerd, a Kubernetes.
//!
//! Postgres and NATS are started once for a test program and shared by its tests: each
//! test takes a database, and subjects or streams, of its own. They end with the
//! program.

use tokio::sync::OnceCell;

use crate::containerd::ContainerdEndpoint;
use crate::instance::StartError;
use crate::kubernetes::KubernetesEndpoint;
use crate::nats::NatsEndpoint;
use crate::plan::Parts;
use crate::postgres::PostgresEndpoint;
use crate::system::{Options, System};

static POSTGRES: OnceCell<System> = OnceCell::const_new();
static NATS: OnceCell<System> = OnceCell::const_new();

async fn start(parts: Parts) -> Result<System, StartError> {
    System::start(Options::parts(parts)).await
}

fn missing(system: &System, part: &str) -> StartError {
    StartError::Failed {
        message: format!("{part} was not started"),
        logs: system.logs(),
    }
}

/// A fresh database on this test program's Postgres.
#[derive(Clone, Debug)]
pub struct TestPostgres {
    /// The superuser's URL of an empty database that no other test has.
    pub url: String,
    pub endpoint: PostgresEndpoint,
}

impl TestPostgres {
    /// # Errors
    /// When Postgres cannot be started or does not make the database.
    pub async fn start() -> Result<Self, StartError> {
        let parts = Parts {
            postgres: true,
            ..Parts::NONE
        };
        let system = POSTGRES.get_or_try_init(|| start(parts)).await?;
        let endpoint = system
            .postgres
            .clone()
            .ok_or_else(|| missing(system, "postgres"))?;
        let url = endpoint
            .fresh_database()
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
        let parts = Parts {
            nats: true,
            ..Parts::NONE
        };
        let system = NATS.get_or_try_init(|| start(parts)).await?;
        system.nats.clone().ok_or_else(|| missing(system, "nats"))
    }

    /// A server of the caller's own, to kill (`system.kill("nats", 0)`), stop and resume.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn own() -> Result<(System, NatsEndpoint), StartError> {
        let system = start(Parts {
            nats: true,
            ..Parts::NONE
        })
        .await?;
        let endpoint = system
            .nats
            .clone()
            .ok_or_else(|| missing(&system, "nats"))?;
        Ok((system, endpoint))
    }
}

/// A private containerd with the images python:3.11-slim and busybox; ends with the value.
#[derive(Debug)]
pub struct TestContainerd {
    pub endpoint: ContainerdEndpoint,
    pub system: System,
}

impl TestContainerd {
    /// # Errors
    /// When it cannot be started: not root, something not installed.
    pub async fn start() -> Result<Self, StartError> {
        let system = start(Parts {
            containerd: true,
            ..Parts::NONE
        })
        .await?;
        let endpoint = system
            .containerd
            .clone()
            .ok_or_else(|| missing(&system, "containerd"))?;
        Ok(Self { endpoint, system })
    }
}

/// A Kubernetes of one node with the images python:3.11-slim and busybox; ends with the
/// value.
#[derive(Debug)]
pub struct TestKubernetes {
    pub endpoint: KubernetesEndpoint,
    pub system: System,
}

impl TestKubernetes {
    /// # Errors
    /// When it cannot be started: not root, something not installed or not built.
    pub async fn start() -> Result<Self, StartError> {
        let system = start(Parts {
            kubernetes: true,
            ..Parts::NONE
        })
        .await?;
        let endpoint = system
            .kubernetes
            .clone()
            .ok_or_else(|| missing(&system, "kubernetes"))?;
        Ok(Self { endpoint, system })
    }
}
