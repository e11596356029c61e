//! Listening: sockets, connections and how long a head may take.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::RouteMirror;
use agentbox_service::Component;
use anyhow::Context as _;
use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::config::Config;
use crate::edge::PeerAddress;
use crate::metrics;
use crate::state::Gateway;

const BACKLOG: u32 = 1024;
/// How long requests in flight may take to end when the gateway stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Binds every address of the configuration.
///
/// # Errors
/// When an address is taken or not this machine's.
pub(crate) fn bind(config: &Config) -> Result<Vec<TcpListener>, anyhow::Error> {
    config
        .listen
        .iter()
        .enumerate()
        .map(|(index, address)| bind_one(*address, config.listen_shared && index == 0))
        .collect()
}

fn bind_one(address: SocketAddr, shared: bool) -> Result<TcpListener, anyhow::Error> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(shared)?;
    socket
        .bind(address)
        .with_context(|| format!("cannot listen on {address} (AGENTBOX_LISTEN)"))?;
    Ok(socket.listen(BACKLOG)?)
}

pub(crate) async fn until_synced(
    routes: RouteMirror,
    ready: Component,
    shutdown: CancellationToken,
) -> Result<(), anyhow::Error> {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        if routes.is_synced() {
            ready.ready();
        } else {
            ready.not_ready("the route table has not been read yet");
        }
    }
}

pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    gateway: Gateway,
) -> Result<(), anyhow::Error> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(gateway.config.header_timeout_s));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(256)
        .keep_alive_interval(Duration::from_secs(30));
    let graceful = GracefulShutdown::new();
    let max = gateway.config.max_connections;
    let slots = Arc::new(Semaphore::new(max));
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = gateway.shutdown.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (stream, peer, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, say: others will end and free some.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        metrics::connections(max - slots.available_permits());
        let router = router.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(PeerAddress(peer));
            let router = router.clone();
            async move {
                let response = router.oneshot(request.map(axum::body::Body::new)).await;
                Ok::<_, Infallible>(response.unwrap_or_else(|never| match never {}))
            }
        });
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN_DEADLINE, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "connections did not end in time"
        );
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(
    tokio::net::TcpStream,
    SocketAddr,
    tokio::sync::OwnedSemaphorePermit,
)> {
    // At the limit new connections wait in the kernel's queue.
    let slot = slots
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, slot))
}
