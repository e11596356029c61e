//! The way to a box's boxd: straight to the Pod, or through the API server.

use std::io::Cursor;
use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxStream, RuntimeError};
use tokio::io::{AsyncReadExt as _, join, split};
use tokio::net::TcpStream;

use crate::cluster::with_causes;
use crate::config::Reach;
use crate::driver::Inner;

impl Inner {
    /// A connection that boxd has accepted.
    pub async fn dial(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Box<dyn BoxStream>, RuntimeError> {
        let within = Duration::from_millis(self.config.connect_deadline_ms);
        let dialed = async {
            match self.config.reach {
                Reach::PodIp => dial_pod(address).await,
                Reach::PortForward => self.forward(id, address.port()).await,
            }
        };
        match tokio::time::timeout(within, dialed).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(why)) => Err(RuntimeError::Unreachable(format!("{address}: {why}"))),
            Err(_) => Err(RuntimeError::Unreachable(format!(
                "{address}: no answer in {within:?}"
            ))),
        }
    }

    /// What `kubectl port-forward` does. It accepts a connection before anybody is known to
    /// listen in the Pod, so boxd's first byte is waited for: it speaks first, with its
    /// HTTP/2 settings.
    async fn forward(&self, id: &EnvironmentId, port: u16) -> Result<Box<dyn BoxStream>, String> {
        let pods = self.cluster.pods_of(id).await.map_err(|e| e.to_string())?;
        let forwarded = pods.portforward("main", &[port]).await;
        let mut forwarded = forwarded.map_err(|error| with_causes(&error))?;
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
    // Each frame is an answer somebody waits for.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    Ok(Box::new(stream))
}
