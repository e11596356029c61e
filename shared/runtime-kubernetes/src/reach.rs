//! Connects to a box's boxd: directly, or through the API server.

use std::io::Cursor;
use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxStream, RuntimeError};
use tokio::io::{AsyncReadExt as _, join, split};
use tokio::net::TcpStream;

use crate::config::Reach;
use crate::context::Context;

impl Context {
    /// Opens a connection that boxd has accepted.
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

    /// Connects as `kubectl port-forward` does. The API server accepts a connection even when
    /// nothing listens in the Pod. Therefore this waits for the first byte: boxd sends its HTTP/2
    /// settings at once.
    async fn forward(&self, id: &EnvironmentId, port: u16) -> Result<Box<dyn BoxStream>, String> {
        let pods = self.cluster.box_pods(id).await.map_err(|e| e.to_string())?;
        let forwarded = pods.portforward("main", &[port]).await;
        let mut forwarded = forwarded.map_err(|error| ErrorChain(&error).to_string())?;
        let mut stream = forwarded.take_stream(port).ok_or("no stream was opened")?;
        let mut first = [0];
        stream
            .read_exact(&mut first)
            .await
            .map_err(|_| "nothing answers in the Pod")?;
        let (rest, write) = split(stream);
        Ok(Box::new(join(Cursor::new(first).chain(rest), write)))
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
