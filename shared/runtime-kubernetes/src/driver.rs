//! The driver: the seam's two traits over one Kubernetes cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_runtime::{
    BoxConnector, BoxSpec, BoxStream, Capacity, ChangeStream, Observed, PreflightError, Runtime,
    RuntimeError, Usage,
};
use async_trait::async_trait;

use crate::cluster::Cluster;
use crate::config::{Config, ConfigError};
use crate::usage::Measurements;
use crate::watch::Watch;

/// The driver cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("there is no kubeconfig at {0}")]
    Kubeconfig(PathBuf),
}

/// One Kubernetes cluster's boxes. Clones share their connections and one watch.
#[derive(Clone, Debug)]
pub struct Driver {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub struct Inner {
    pub config: Config,
    pub cluster: Cluster,
    pub watch: Watch,
    pub measurements: Measurements,
}

impl Driver {
    /// Does not wait for the API server: one that is down is a cluster that answers
    /// [`RuntimeError::Unavailable`], and comes back by itself.
    ///
    /// # Errors
    /// When the configuration cannot be used here.
    pub fn connect(config: Config) -> Result<Self, ConnectError> {
        config.validate()?;
        if let Some(path) = config.kubeconfig.as_ref().filter(|path| !path.is_file()) {
            return Err(ConnectError::Kubeconfig(path.clone()));
        }
        let inner = Inner {
            cluster: Cluster::new(&config),
            watch: Watch::default(),
            measurements: Measurements::default(),
            config,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
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
        let pod = self.inner.pod(id).await?;
        let held = pod
            .and_then(|pod| pod.status?.pod_ip)
            .and_then(|ip| ip.parse::<IpAddr>().ok());
        if held != Some(address.ip()) {
            return Err(RuntimeError::Unreachable(format!(
                "{address} is not the box's address"
            )));
        }
        self.inner.dial(id, address).await
    }

    async fn usage(&self, id: &EnvironmentId) -> Result<Option<Usage>, RuntimeError> {
        Ok(self.inner.usage(id).await?)
    }

    async fn last_output(
        &self,
        id: &EnvironmentId,
        limit_bytes: usize,
    ) -> Result<Vec<LogEntry>, RuntimeError> {
        self.inner.last_output(id, limit_bytes).await
    }
}
