//! Connects to a box's boxd: directly, or through the API server.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use agentbox_box_protocol::client;
use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxSpec, BoxStream, RuntimeError};
use tokio::net::TcpStream;

use crate::config::Reach;
use crate::context::Context;

impl Context {
    /// Opens a connection: to boxd, or to the API server, which closes it if boxd does not listen.
    pub async fn dial(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Box<dyn BoxStream>, RuntimeError> {
        let within = Duration::from_millis(self.config.connect_deadline_ms);
        let connection = async {
            match self.config.reach {
                Reach::PodIp => dial_pod(address).await,
                Reach::PortForward => self.forward(id, address.port()).await,
            }
        };
        match tokio::time::timeout(within, connection).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(RuntimeError::Unreachable(format!("{address}: {error}"))),
            Err(_) => Err(RuntimeError::Unreachable(format!(
                "{address}: no answer in {within:?}"
            ))),
        }
    }

    /// Checks that the box's boxd listens. Through the API server only a TLS handshake shows it.
    pub async fn probe(&self, spec: &BoxSpec, address: SocketAddr) -> Result<(), RuntimeError> {
        let stream = self.dial(&spec.id, address).await?;
        if self.config.reach == Reach::PodIp {
            return Ok(());
        }
        let unreachable = |error: &(dyn Error + 'static)| {
            RuntimeError::Unreachable(format!("{address}: {}", ErrorChain(error)))
        };
        let token = BoxToken::parse(&spec.boxd_token).map_err(|error| unreachable(&error))?;
        let connected = client::connect(stream, &token).await;
        connected.map(drop).map_err(|error| unreachable(&error))
    }

    /// Connects as `kubectl port-forward` does. The API server accepts a connection even when nothing
    /// listens in the Pod, and then closes it.
    async fn forward(&self, id: &EnvironmentId, port: u16) -> Result<Box<dyn BoxStream>, String> {
        let pods = self.cluster.box_pods(id).await.map_err(|e| e.to_string())?;
        let forwarded = pods.portforward("main", &[port]).await;
        let mut forwarded = forwarded.map_err(|error| ErrorChain(&error).to_string())?;
        let stream = forwarded.take_stream(port).ok_or("no stream was opened")?;
        Ok(Box::new(stream))
    }
}

async fn dial_pod(address: SocketAddr) -> Result<Box<dyn BoxStream>, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    // A caller waits for each frame.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    Ok(Box::new(stream))
}
