//! The exec-proxy's side of the seam.

use std::net::SocketAddr;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_contracts::units::{Bytes, MilliCpu};
use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::RuntimeError;

/// A byte stream to a boxd; gRPC runs on top.
pub trait BoxStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> BoxStream for T {}

/// What a box uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub cpu: MilliCpu,
    pub memory: Bytes,
}

/// Reaches into one cluster's boxes.
#[async_trait]
pub trait BoxConnector: Send + Sync + 'static {
    /// Connects to the boxd at `address`, which [`crate::Observed`] gave.
    /// [`RuntimeError::Unreachable`] when nothing listens there in time.
    async fn connect(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Box<dyn BoxStream>, RuntimeError>;

    /// What a running box uses, as its cluster measures it. `None` where that does not
    /// measure, or this box not yet: its boxd knows too.
    async fn usage(&self, _id: &EnvironmentId) -> Result<Option<Usage>, RuntimeError> {
        Ok(None)
    }

    /// The newest kept output of a box whose boxd may be gone, oldest entry first, at
    /// most `limit_bytes` of lines. Empty when the cluster has nothing of it.
    async fn last_output(
        &self,
        id: &EnvironmentId,
        limit_bytes: usize,
    ) -> Result<Vec<LogEntry>, RuntimeError>;
}
