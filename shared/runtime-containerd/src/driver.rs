//! The driver: implements the two runtime traits for one machine's containerd.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::{executions, output as output_files};
use agentbox_contracts::executions::Execution;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_runtime::{
    BoxConnector, BoxSpec, BoxStream, Capacity, ChangeStream, Observed, PolicyApplication,
    PreflightError, Runtime, RuntimeError, image_reference,
};
use async_trait::async_trait;
use tokio::net::TcpStream;

use crate::config::{Config, ConfigError};
use crate::context::Context;
use crate::error::io_failure;

/// The driver cannot be constructed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("boxd: {0} is not a file")]
    Boxd(PathBuf),
    #[error("state_dir: cannot create {path}")]
    StateDirectory {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// The driver of one containerd on this machine. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Driver {
    context: Arc<Context>,
}

impl Driver {
    /// Constructs the driver without waiting for containerd. While that is down, calls return
    /// [`RuntimeError::Unavailable`].
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the configuration is invalid, or boxd or the state directory is missing.
    pub fn connect(config: Config) -> Result<Self, ConnectError> {
        config.validate()?;
        crate::metrics::describe();
        if !config.boxd.is_file() {
            return Err(ConnectError::Boxd(config.boxd));
        }
        std::fs::create_dir_all(&config.state_dir).map_err(|source| {
            ConnectError::StateDirectory {
                path: config.state_dir.clone(),
                source,
            }
        })?;
        Ok(Self {
            context: Arc::new(Context::new(config)),
        })
    }
}

#[async_trait]
impl Runtime for Driver {
    async fn preflight(&self, spec: &BoxSpec) -> Result<(), PreflightError> {
        self.context.preflight(spec).await
    }

    #[tracing::instrument(skip_all, fields(environment.id = %spec.id, generation), err(level = "debug"))]
    async fn ensure(&self, spec: &BoxSpec, generation: i64) -> Result<Observed, RuntimeError> {
        Box::pin(self.context.ensure(spec, generation)).await
    }

    #[tracing::instrument(skip_all, fields(environment.id = %spec.id, generation), err(level = "debug"))]
    async fn claim(
        &self,
        spec: &BoxSpec,
        generation: i64,
        address: SocketAddr,
    ) -> Result<Observed, RuntimeError> {
        self.context.claim(spec, generation, address).await
    }

    #[tracing::instrument(skip_all, fields(environment.id = %spec.id, generation), err(level = "debug"))]
    async fn apply_network_policy(
        &self,
        spec: &BoxSpec,
        generation: i64,
    ) -> Result<PolicyApplication, RuntimeError> {
        self.context.apply_network_policy(spec, generation).await
    }

    #[tracing::instrument(skip_all, fields(environment.id = %id), err(level = "debug"))]
    async fn stop(&self, id: &EnvironmentId, grace: Duration) -> Result<(), RuntimeError> {
        self.context.stop(id, grace).await
    }

    #[tracing::instrument(skip_all, fields(environment.id = %id), err(level = "debug"))]
    async fn remove(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        self.context.remove(id).await
    }

    async fn get(&self, id: &EnvironmentId) -> Result<Option<Observed>, RuntimeError> {
        self.context.get(id).await
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.context.list().await
    }

    async fn watch(&self) -> Result<ChangeStream, RuntimeError> {
        crate::watch::watch(self.context.clone()).await
    }

    async fn capacity(&self) -> Result<Capacity, RuntimeError> {
        self.context.capacity().await
    }

    async fn image_digest(&self, image: &str) -> Result<Option<String>, RuntimeError> {
        let name = image_reference::complete(image);
        let status = self.context.cri.image(&name).await?;
        // The digest of its configuration, which has those of its layers.
        Ok(status.and_then(|status| status.image).map(|image| image.id))
    }

    async fn image_is_of_root(&self, image: &str) -> Result<bool, RuntimeError> {
        Ok(self.context.image_config(image).await?.is_of_root())
    }
}

#[async_trait]
impl BoxConnector for Driver {
    async fn connect(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Box<dyn BoxStream>, RuntimeError> {
        // The address may belong to another box by now, which must not receive this box's token.
        let current = self
            .context
            .states
            .load(id)
            .await?
            .and_then(|state| state.network);
        if current.is_none_or(|network| IpAddr::V4(network.address) != address.ip()) {
            return Err(RuntimeError::Unreachable(format!(
                "{address} is not the box's address"
            )));
        }
        let within = Duration::from_millis(self.context.config.connect_deadline_ms);
        let stream = tokio::time::timeout(within, TcpStream::connect(address))
            .await
            .map_err(|_| RuntimeError::Unreachable(format!("{address}: no answer in {within:?}")))?
            .map_err(|error| RuntimeError::Unreachable(format!("{address}: {error}")))?;
        // A caller waits for each frame.
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
        let directory = self.context.output_directory(id);
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

    async fn last_executions(&self, id: &EnvironmentId) -> Result<Vec<Execution>, RuntimeError> {
        let directory = self.context.output_directory(id);
        tokio::task::spawn_blocking(move || executions::read(&directory))
            .await
            .map_err(|error| RuntimeError::Cluster {
                operation: "last executions",
                message: error.to_string(),
            })
    }

    async fn last_execution_output(&self, id: &EnvironmentId) -> Result<Vec<u8>, RuntimeError> {
        let directory = self.context.output_directory(id);
        tokio::task::spawn_blocking(move || executions::read_output(&directory))
            .await
            .map_err(|error| RuntimeError::Cluster {
                operation: "last output of executions",
                message: error.to_string(),
            })
    }
}
