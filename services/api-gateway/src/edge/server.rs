//! Listening: sockets, connections, and how long each part of them may take.
//!
//! * I1. The number of connections is limited, in total and for each client network
//!   ([`slots`](super::slots)).
//! * I2. A connection without an open request ends by a deadline, whatever its protocol and
//!   however much of a request has arrived: before its first request and between two. A dead peer,
//!   and a client that does not read its answer, end by deadlines too.
//! * I3. While the gateway drains, each answer over HTTP/1 closes its connection, so that no
//!   client sends a request on a connection that is about to close. Streams that were opened
//!   before end soon (`AppState::stream_stop_token`).
//! * I4. A request that is refused gets an answer, in the shape of every error, whatever part of it
//!   was read; the client is told if its connection ends with it ([`request_body`],
//!   [`client_stream`](super::client_stream)).
//! * I5. On shutdown no connection is accepted and streams end at once. Requests in flight have
//!   [`DRAIN_DEADLINE`] to finish; then their connections are closed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use anyhow::Context as _;
use axum::Router;
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::activity::{Activity, AnswerBody};
use super::admit::Proxied;
use super::client_address::{ClientAddress, OverTls};
use super::client_stream::{self, ClientStream};
use super::request_body::{self, Rest};
use super::slots::{REFUSAL_DEADLINE, Slot, Slots};
use crate::config::Config;
use crate::metrics;
use crate::state::Gateway;

/// Connections that wait in the kernel until they are accepted, for each address.
const BACKLOG: u32 = 1024;
/// How long requests in flight may take to end when the gateway stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// The pause after a failed accept, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A peer that acknowledges neither data nor a probe for this long is treated as gone.
const PEER_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a connection is idle before the first probe.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Requests at once on one HTTP/2 connection.
const MAX_HTTP2_STREAMS: u32 = 256;
/// Bytes of a head over HTTP/2 that are read. [`super::headers::check`] accepts fewer, and
/// answers in the shape of every error.
const MAX_HTTP2_HEAD: u32 = 64 * 1024;
/// Bytes of one answer over HTTP/2 that wait for the client.
const HTTP2_SEND_BUFFER: usize = 64 * 1024;
/// Bytes of answers that the kernel holds until it may send them to the client. Otherwise it holds up to
/// 4 MiB (`tcp_wmem`), which count as received to a command that waits for its reader. Bytes that were sent
/// and not acknowledged are not bounded by it, so it does not limit the throughput of a connection with a
/// long round trip. While one half is sent the gateway writes the other one: at 10 Gbit/s it has 100 µs.
const MAX_UNSENT: u32 = 256 * 1024;
/// How long a connection without an open request may take to close.
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);

/// Binds every address of the configuration.
///
/// # Errors
/// When an address is in use, or is not an address of this machine.
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

fn builder(config: &Config) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(client_stream::MAX_HTTP1_HEAD)
        // `Connection::serve` has the deadline, for every protocol.
        .header_read_timeout(None::<Duration>);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_header_list_size(MAX_HTTP2_HEAD)
        .max_send_buf_size(HTTP2_SEND_BUFFER)
        .keep_alive_interval(PROBE_AFTER)
        .keep_alive_timeout(config.header_timeout());
    builder
}

/// Serves until shutdown.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    gateway: Gateway,
    slots: Slots,
) -> Result<(), anyhow::Error> {
    let builder = builder(&gateway.config);
    let connections = TaskTracker::new();
    // Ends each connection after its open requests.
    let stopping = CancellationToken::new();
    // Closes the connections that are still open after the drain deadline.
    let force_close = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = gateway.shutdown.cancelled() => break,
            accepted = accept(&listener, &slots, &gateway.config) => accepted,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                let connection = Connection {
                    peer,
                    slot,
                    router: router.clone(),
                    gateway: gateway.clone(),
                };
                let served = connection.serve(stream, builder.clone(), stopping.clone());
                let force_close = force_close.clone();
                connections.spawn(async move {
                    tokio::select! {
                        () = served => {}
                        () = force_close.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    stopping.cancel();
    if tokio::time::timeout(DRAIN_DEADLINE, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "connections did not end in time"
        );
    }
    force_close.cancel();
    connections.wait().await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    slots: &Slots,
    config: &Config,
) -> std::io::Result<(TcpStream, SocketAddr, Slot)> {
    loop {
        let permit = slots
            .acquire()
            .await
            .ok_or_else(|| std::io::Error::other("the listener is closed"))?;
        let (stream, peer) = listener.accept().await?;
        let address = ClientAddress::of_peer(peer);
        match slots.open(permit, address, address.is_in(&config.trusted_proxies)) {
            Ok(slot) => return Ok((stream, peer, slot)),
            Err(full) => client_stream::refuse(&stream, &full.error()),
        }
    }
}

struct Connection {
    peer: SocketAddr,
    slot: Slot,
    router: Router,
    gateway: Gateway,
}

impl Connection {
    /// Serves the connection until it ends.
    async fn serve(
        self,
        stream: TcpStream,
        builder: Builder<TokioExecutor>,
        stopping: CancellationToken,
    ) {
        if let Err(error) = configure(&stream) {
            tracing::debug!(error = %ErrorChain(&error), "a connection's options could not be set");
        }
        if self.slot.is_refused() {
            let served = self.serve_requests(stream, builder, stopping, REFUSAL_DEADLINE);
            // The timeout also ends a client that sends requests all the time.
            let _ = tokio::time::timeout(REFUSAL_DEADLINE + CLOSE_DEADLINE, served).await;
        } else {
            let idle = self.gateway.config.header_timeout();
            self.serve_requests(stream, builder, stopping, idle).await;
        }
    }

    /// `idle`: how long the connection may have no open request.
    async fn serve_requests(
        self,
        stream: TcpStream,
        builder: Builder<TokioExecutor>,
        stopping: CancellationToken,
        idle: Duration,
    ) {
        let Self {
            peer,
            slot,
            router,
            gateway,
        } = self;
        let activity = Activity::new();
        let write_timeout = gateway.config.write_timeout();
        let client_stream = ClientStream::new(stream, Arc::clone(&activity), write_timeout);
        let of_requests = Arc::clone(&activity);
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            let trusted = &gateway.config.trusted_proxies;
            let client = ClientAddress::find(peer, request.headers(), trusted);
            let over_tls = OverTls::find(peer, request.headers(), trusted);
            request.extensions_mut().insert(client);
            if let Some(over_tls) = over_tls {
                request.extensions_mut().insert(over_tls);
            }
            request.extensions_mut().insert(slot.clone());
            let open_request = of_requests.begin_request();
            let answer = answer(
                request,
                router.clone(),
                gateway.clone(),
                slot.clone(),
                Arc::clone(&of_requests),
            );
            async move {
                let answer = answer.await;
                Ok::<_, Infallible>(answer.map(|body| AnswerBody::new(body, open_request)))
            }
        });
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(client_stream), service)
            .into_owned();
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = activity.idle_for(idle, write_timeout) => {
                metrics::limit_reached("idle_connection");
                if activity.is_http2() {
                    connection.as_mut().graceful_shutdown();
                } else {
                    activity.expire();
                }
                None
            }
            () = stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                None
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            // A request that has arrived meanwhile is answered.
            None => tokio::select! {
                ended = connection.as_mut() => ended,
                () = activity.idle_for(CLOSE_DEADLINE, DRAIN_DEADLINE) => return,
            },
        };
        if let Err(error) = ended {
            tracing::debug!(error = %ErrorChain(&*error), "a connection ended with an error");
        }
    }
}

/// Answers one request. Over HTTP/1 the answer closes a connection on which no further request is read.
async fn answer(
    request: hyper::Request<Incoming>,
    router: Router,
    gateway: Gateway,
    slot: Slot,
    activity: Arc<Activity>,
) -> Response {
    // HTTP/2 has no such header: its connections end by a GOAWAY frame.
    let is_http1 = request.version() < Version::HTTP_2;
    let (parts, body) = request.into_parts();
    let (body, rest) = request_body::split(&parts.headers, body);
    let request = hyper::Request::from_parts(parts, axum::body::Body::new(body));
    let answer = router.oneshot(request).await;
    let mut answer = answer.unwrap_or_else(|never| match never {});
    // The request did not arrive in time, so the rest of its body is not awaited either.
    let is_late = answer.status() == StatusCode::REQUEST_TIMEOUT;
    let must_close =
        || is_late || gateway.draining.is_cancelled() || slot.is_refused() || activity.is_expired();
    let is_proxied = answer.extensions().get::<Proxied>().is_some();
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        activity.set_upgraded();
    } else if is_http1 && (must_close() || !is_read(rest, is_proxied).await) {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
    }
    answer
}

/// Whether the whole body of a request was read, after the rest of a small one was dropped. The rest of
/// one that is proxied may still be read by the server in the box.
async fn is_read(rest: Rest, is_proxied: bool) -> bool {
    match is_proxied {
        true => rest.is_complete(),
        false => rest.discard().await,
    }
}

fn configure(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_notsent_lowat(MAX_UNSENT)?;
    let keepalive = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_EVERY)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::Ipv4Addr;

    use super::*;

    /// After this time without room the kernel takes no more bytes.
    const FULL_AFTER: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn kernel_takes_few_bytes_for_a_client_that_does_not_read() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpSocket::new_v4().unwrap();
        client.set_recv_buffer_size(64 * 1024).unwrap();
        let (client, accepted) = tokio::join!(client.connect(address), listener.accept());
        let (_client, (stream, _)) = (client.unwrap(), accepted.unwrap());
        configure(&stream).unwrap();
        let bytes = vec![0; 32 * 1024];
        let mut taken = 0;
        while let Ok(ready) = tokio::time::timeout(FULL_AFTER, stream.writable()).await {
            ready.unwrap();
            match stream.try_write(&bytes) {
                Ok(count) => taken += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        // With the client's receive buffer.
        assert!(taken < 3 * MAX_UNSENT as usize, "{taken}");
    }
}
