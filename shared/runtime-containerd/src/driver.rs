//! The driver: the seam's two traits over one machine's containerd.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::output as output_files;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_runtime::{
    BoxConnector, BoxSpec, BoxStream, Capacity, ChangeStream, Observed, PreflightError, Runtime,
    RuntimeError,
};
use async_trait::async_trait;
use tokio::net::TcpStream;

use crate::config::{Config, ConfigError};
use crate::cri::Cri;
use crate::facts::FactsStore;
use crate::firewall::Firewall;

/// The driver cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("there is no boxd at {0}")]
    Boxd(PathBuf),
    #[error("the driver's directory {path} cannot be used")]
    StateDirectory {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// One cluster of boxes on this machine. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Driver {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub struct Inner {
    pub config: Config,
    pub cri: Cri,
    pub facts: FactsStore,
    pub firewall: Firewall,
}

impl Driver {
    /// Does not wait for containerd: a machine whose containerd is down is a cluster that
    /// answers [`RuntimeError::Unavailable`], and comes back by itself.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the configuration cannot be used here.
    pub fn connect(config: Config) -> Result<Self, ConnectError> {
        config.validate()?;
        if !config.boxd.is_file() {
            return Err(ConnectError::Boxd(config.boxd));
        }
        std::fs::create_dir_all(&config.state_dir).map_err(|source| {
            ConnectError::StateDirectory {
                path: config.state_dir.clone(),
                source,
            }
        })?;
        let inner = Inner {
            cri: Cri::new(&config.socket, config.call_deadline()),
            facts: FactsStore::new(&config.state_dir),
            firewall: Firewall::new(&config),
            config,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

impl Inner {
    pub fn output_directory(&self, id: &EnvironmentId) -> PathBuf {
        self.facts.directory(id).join("output")
    }

    /// Long enough for another replica to make or remove the box.
    pub fn lock_deadline(&self) -> Duration {
        let seconds = self.config.sandbox_deadline_s + self.config.start_deadline_s;
        Duration::from_secs(seconds)
    }
}

pub fn io_failure(operation: &'static str, error: &std::io::Error) -> RuntimeError {
    RuntimeError::Cluster {
        operation,
        message: error.to_string(),
    }
}

#[async_trait]
impl Runtime for Driver {
    async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError> {
        self.inner.preflight(spec).await
    }

    #[tracing::instrument(skip_all, fields(environment.id = %spec.id, generation), err(level = "debug"))]
    async fn ensure(&self, spec: &BoxSpec, generation: i64) -> Result<Observed, RuntimeError> {
        Box::pin(self.inner.ensure(spec, generation)).await
    }

    #[tracing::instrument(skip_all, fields(environment.id = %id), err(level = "debug"))]
    async fn stop(&self, id: &EnvironmentId, grace: Duration) -> Result<(), RuntimeError> {
        self.inner.stop(id, grace).await
    }

    #[tracing::instrument(skip_all, fields(environment.id = %id), err(level = "debug"))]
    async fn remove(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        self.inner.remove(id).await
    }

    async fn get(&self, id: &EnvironmentId) -> Result<Option<Observed>, RuntimeError> {
        self.inner.get(id).await
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.inner.list().await
    }

    async fn watch(&self) -> Result<ChangeStream, RuntimeError> {
        crate::watch::watch(self.inner.clone()).await
    }

    async fn capacity(&self) -> Result<Capacity, RuntimeError> {
        self.inner.capacity().await
    }
}

#[async_trait]
impl BoxConnector for Driver {
    async fn connect(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Box<dyn BoxStream>, RuntimeError> {
        // The address may be another box's by now, which must not be sent this one's token.
        let holds = self
            .inner
            .facts
            .load(id)
            .await?
            .and_then(|facts| facts.network);
        if holds.is_none_or(|network| IpAddr::V4(network.address) != address.ip()) {
            return Err(RuntimeError::Unreachable(format!(
                "{address} is not the box's address"
            )));
        }
        let within = Duration::from_millis(self.inner.config.connect_deadline_ms);
        let stream = tokio::time::timeout(within, TcpStream::connect(address))
            .await
            .map_err(|_| RuntimeError::Unreachable(format!("{address}: no answer in {within:?}")))?
            .map_err(|error| RuntimeError::Unreachable(format!("{address}: {error}")))?;
        // Each frame is an answer somebody waits for.
        stream
            .set_nodelay(true)
            .map_err(|error| io_failure("connect", &error))?;
        Ok(Box::new(stream))
    }

    async fn last_output(
        &self,
        id: &EnvironmentId,
        limit_bytes: usize,
    ) -> Result<Vec<LogEntry>, RuntimeError> {
        let directory = self.inner.output_directory(id);
        let read = move || {
            if directory.is_dir() {
                output_files::read_newest(&directory, limit_bytes).map_err(|e| e.to_string())
            } else {
                Ok(Vec::new())
            }
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| error.to_string())
            .and_then(|outcome| outcome)
            .map_err(|message| RuntimeError::Cluster {
                operation: "last output",
                message,
            })
    }
}
