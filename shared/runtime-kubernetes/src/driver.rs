//! The driver: implements the two runtime traits for one Kubernetes cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::executions::Execution;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_runtime::{
    BoxConnector, BoxSpec, BoxStream, Capacity, ChangeStream, Observed, PolicyApplication,
    PreflightError, Runtime, RuntimeError, Usage,
};
use async_trait::async_trait;

use crate::config::{Config, ConfigError};
use crate::context::Context;

/// The driver cannot be constructed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("kubeconfig: {0} is not a file")]
    Kubeconfig(PathBuf),
}

/// The driver of one Kubernetes cluster. Clones share their connections and one watch.
#[derive(Clone, Debug)]
pub struct Driver {
    context: Arc<Context>,
}

impl Driver {
    /// Constructs the driver without waiting for the API server. While that is down, calls
    /// return [`RuntimeError::Unavailable`].
    ///
    /// # Errors
    /// When the configuration is invalid or its kubeconfig is missing.
    pub fn connect(config: Config) -> Result<Self, ConnectError> {
        config.validate()?;
        if let Some(path) = config.kubeconfig.as_ref().filter(|path| !path.is_file()) {
            return Err(ConnectError::Kubeconfig(path.clone()));
        }
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
        self.context.image_digest(image).await
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
        let pod = self.context.pod(id).await?;
        let current = pod
            .and_then(|pod| pod.status?.pod_ip)
            .and_then(|ip| ip.parse::<IpAddr>().ok());
        if current != Some(address.ip()) {
            return Err(RuntimeError::Unreachable(format!(
                "{address} is not the box's address"
            )));
        }
        self.context.dial(id, address).await
    }

    async fn usage(&self, id: &EnvironmentId) -> Result<Option<Usage>, RuntimeError> {
        Ok(self.context.usage(id).await?)
    }

    async fn last_output(
        &self,
        id: &EnvironmentId,
        limit_bytes: usize,
    ) -> Result<Vec<LogEntry>, RuntimeError> {
        self.context.last_output(id, limit_bytes).await
    }

    async fn last_executions(&self, id: &EnvironmentId) -> Result<Vec<Execution>, RuntimeError> {
        self.context.last_executions(id).await
    }
}
