//! The trait for the exec-proxy.

use std::net::SocketAddr;

use agentbox_contracts::executions::Execution;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_contracts::units::{Bytes, MilliCpu};
use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::RuntimeError;

/// A byte stream to a boxd; gRPC runs on top.
pub trait BoxStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> BoxStream for T {}

/// The resources that a box uses now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub cpu: MilliCpu,
    pub memory: Bytes,
}

/// Connects to the boxes of one cluster.
#[async_trait]
pub trait BoxConnector: Send + Sync + 'static {
    /// Connects to the boxd at an `address` of [`crate::Observed`]. Returns
    /// [`RuntimeError::Unreachable`] when nothing accepts in time. Something between may accept although
    /// boxd does not listen: then the TLS handshake fails.
    async fn connect(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Box<dyn BoxStream>, RuntimeError>;

    /// The usage of a running box as its cluster measures it; `None` when the cluster does not
    /// measure, or has not measured this box yet. The box's boxd measures too.
    async fn usage(&self, _id: &EnvironmentId) -> Result<Option<Usage>, RuntimeError> {
        Ok(None)
    }

    /// The newest output of a box, also after its boxd has ended: at most `limit_bytes` of lines,
    /// oldest first. Empty when the cluster has none.
    async fn last_output(
        &self,
        id: &EnvironmentId,
        limit_bytes: usize,
    ) -> Result<Vec<LogEntry>, RuntimeError>;

    /// The executions of a box, also after its boxd has ended, as boxd has reported them: those without
    /// an outcome were interrupted by its end. Bounded by boxd's journal. Empty when the cluster has
    /// none.
    async fn last_executions(&self, id: &EnvironmentId) -> Result<Vec<Execution>, RuntimeError>;

    /// The output of executions that boxd has saved when its box ended: the content for
    /// [`OutputReader`](agentbox_box_protocol::executions::OutputReader). Empty when the cluster keeps none.
    async fn last_execution_output(&self, _id: &EnvironmentId) -> Result<Vec<u8>, RuntimeError> {
        Ok(Vec::new())
    }
}
