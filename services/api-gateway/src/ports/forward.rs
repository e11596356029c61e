//! One request to a server in a box, over a connection of its own.
//!
//! * I1. Bodies are passed on as they arrive. Nothing waits for the whole of one.
//! * I2. When the client disconnects, the connection to the port is closed: the answer, which holds
//!   it, is dropped. A client that has only ended its side of HTTP/1.1 has disconnected too.
//! * I3. After a change of the protocol, each direction ends by itself.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::EnvironmentId;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONNECTION, HOST, UPGRADE};
use axum::http::uri::{Authority, Scheme};
use axum::http::{HeaderValue, StatusCode, Uri, Version};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tracing::Instrument;

use super::connection::{self, Usage};
use super::headers;
use super::port_stream::{Ending, PortStream};
use super::target::{Protocol, Target};
use crate::box_loss;
use crate::edge::slots::Slot;
use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;

/// Bytes of an answer's head, and of what is read at once.
const MAX_HEAD: usize = 64 * 1024;
/// Bytes of one body over HTTP/2 that wait in each direction.
const HTTP2_WINDOW: u32 = 64 * 1024;
/// How long a client may send to a port that takes no more. A connection that is closed with unread bytes
/// is reset, and the client may lose the last ones that were sent to it.
const LINGER: Duration = Duration::from_secs(2);

/// Sends a request, whose headers are those for the box, and returns its answer. `upgrade` is the
/// protocol to which the request asks to change.
///
/// # Errors
/// [`ErrorCode::NothingListening`] when nothing listens on the port, or what listens does not answer
/// with HTTP; that the box cannot be reached, or was lost.
pub(crate) async fn forward(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    target: Target,
    usage: Usage,
    slot: Option<Slot>,
    upgrade: Option<HeaderValue>,
    mut request: Request,
) -> Result<Response, Error> {
    let client = hyper::upgrade::on(&mut request);
    let Target {
        port,
        path,
        protocol,
    } = target;
    let stream = match connection::connect(gateway, location, port, usage).await {
        Ok(stream) => stream,
        Err(error) => return Err(box_loss::with_reason(gateway, &location.id, error).await),
    };
    let ending = stream.ending();
    let (parts, body) = request.into_parts();
    let mut sent = Request::new(body);
    *sent.method_mut() = parts.method;
    *sent.headers_mut() = parts.headers;
    *sent.uri_mut() = Uri::from(path);
    let answer = match protocol {
        Protocol::Http1 => send_http1(gateway, stream, sent).await,
        Protocol::H2c => send_http2(gateway, stream, sent, port).await,
    };
    let mut answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Err(explain(gateway, &location.id, port, &error).await),
    };
    let mut changed_to = None;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        if upgrade.is_none() {
            return Err(no_http(
                port,
                &"it changed the protocol without being asked to",
            ));
        }
        changed_to = answer.headers().get(UPGRADE).cloned();
        let server = hyper::upgrade::on(&mut answer);
        let tunnel = tunnel(client, server, slot, ending);
        gateway
            .sockets
            .spawn(tunnel.instrument(tracing::Span::current()));
    }
    let (mut parts, body) = answer.into_parts();
    headers::remove_hop_by_hop(&mut parts.headers);
    if let Some(protocol) = changed_to {
        parts.headers.insert(UPGRADE, protocol);
        let upgrade = HeaderValue::from_static("upgrade");
        parts.headers.insert(CONNECTION, upgrade);
    }
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    Ok(response)
}

async fn send_http1(
    gateway: &Gateway,
    stream: PortStream,
    request: Request,
) -> hyper::Result<hyper::Response<Incoming>> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    spawn(gateway, connection.with_upgrades());
    sender.send_request(request).await
}

async fn send_http2(
    gateway: &Gateway,
    stream: PortStream,
    mut request: Request,
    port: u16,
) -> hyper::Result<hyper::Response<Incoming>> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .max_send_buf_size(HTTP2_WINDOW as usize)
        .max_header_list_size(HTTP2_WINDOW);
    // The host is a part of the URI, and an upgrade does not exist.
    for name in [HOST, CONNECTION, UPGRADE] {
        request.headers_mut().remove(name);
    }
    *request.version_mut() = Version::HTTP_2;
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Authority::try_from(format!("localhost:{port}")).ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    spawn(gateway, connection);
    sender.send_request(request).await
}

/// Runs a connection until its one request is answered, or its answer is dropped.
fn spawn(gateway: &Gateway, connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
    let connection = async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %ErrorChain(&error), "a connection to a port ended with an error");
        }
    };
    gateway
        .sockets
        .spawn(connection.instrument(tracing::Span::current()));
}

/// Passes the bytes of another protocol in both directions, until both sides have ended or one of
/// them is lost. `slot` keeps the place of the client's connection.
async fn tunnel(client: OnUpgrade, server: OnUpgrade, slot: Option<Slot>, ending: Ending) {
    let upgraded = tokio::try_join!(client, server);
    match upgraded {
        Ok((client, server)) => {
            copy(TokioIo::new(client), TokioIo::new(server), &ending).await;
        }
        Err(error) => {
            tracing::debug!(error = %ErrorChain(&error), "a protocol was not changed");
        }
    }
    drop(slot);
}

/// Copies in both directions until both have ended, or the connection is refused: a copy that waits for a
/// client which does not read notices nothing else.
async fn copy(
    client: impl AsyncRead + AsyncWrite,
    server: impl AsyncRead + AsyncWrite,
    ending: &Ending,
) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let to_box = async {
        let passing = pass(&mut from_client, &mut to_server);
        let passed = ending.finished.run_until_cancelled(passing).await;
        match passed {
            Some(passed) => passed,
            // The port takes no more.
            None => {
                let mut nowhere = tokio::io::sink();
                let dropping = tokio::io::copy(&mut from_client, &mut nowhere);
                let _ = tokio::time::timeout(LINGER, dropping).await;
                Ok(())
            }
        }
    };
    let copying = async { tokio::try_join!(to_box, pass(&mut from_server, &mut to_client)) };
    if let Some(Err(error)) = ending.refused.run_until_cancelled(copying).await {
        tracing::debug!(error = %ErrorChain(&error), "a connection to a port was lost");
    }
}

/// Copies one direction to its end, and passes the end on.
async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    tokio::io::copy(from, to).await?;
    to.shutdown().await
}

/// The error of a request without an answer.
async fn explain(gateway: &Gateway, id: &EnvironmentId, port: u16, error: &hyper::Error) -> Error {
    match box_connection_error(error) {
        Some(error) => box_loss::with_reason(gateway, id, error).await,
        None => no_http(port, error),
    }
}

fn no_http(port: u16, reason: &dyn std::fmt::Display) -> Error {
    Error::new(
        ErrorCode::NothingListening,
        format!(
            "what listens on port {port} of the environment did not answer with HTTP: {reason}"
        ),
    )
}

/// The error of the connection to the box, if it is a cause of `error`.
fn box_connection_error(error: &(dyn StdError + 'static)) -> Option<Error> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        let of_stream = current.downcast_ref::<io::Error>();
        if let Some(inner) = of_stream.and_then(io::Error::get_ref)
            && let Some(error) = inner.downcast_ref::<Error>()
        {
            return Some(error.clone());
        }
        cause = current.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn refused_connection_ends_although_its_client_does_not_read() {
        let (client, mut reader) = duplex(16);
        let (server, mut port) = duplex(16);
        let ending = Ending::default();
        let of_copy = ending.clone();
        let copying = tokio::spawn(async move { copy(client, server, &of_copy).await });
        // Until the copy waits for the client.
        let full = Duration::from_millis(200);
        while timeout(full, port.write_all(&[7; 1024])).await.is_ok() {}
        assert!(!copying.is_finished());
        ending.refused.cancel();
        let ended = timeout(DEADLINE, copying).await;
        ended.expect("the copy ends").unwrap();
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert!(rest.iter().all(|byte| *byte == 7) && !rest.is_empty());
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        for port_is_first in [false, true] {
            let (client, mut caller) = duplex(16);
            let (server, mut port) = duplex(16);
            let copying =
                tokio::spawn(async move { copy(client, server, &Ending::default()).await });
            let (first, second) = match port_is_first {
                true => (&mut port, &mut caller),
                false => (&mut caller, &mut port),
            };
            first.shutdown().await.unwrap();
            let mut end = Vec::new();
            let read = timeout(DEADLINE, second.read_to_end(&mut end)).await;
            read.expect("the end is passed on").unwrap();
            assert_eq!(end, b"");
            second.write_all(b"late").await.unwrap();
            second.shutdown().await.unwrap();
            let mut late = Vec::new();
            let read = timeout(DEADLINE, first.read_to_end(&mut late)).await;
            read.expect("the other direction is open").unwrap();
            assert_eq!(late, b"late");
            let ended = timeout(DEADLINE, copying).await;
            ended.expect("the copy ends").unwrap();
        }
    }

    #[tokio::test]
    async fn connection_that_is_finished_ends_after_its_last_bytes_although_the_client_is_open() {
        let (client, mut caller) = duplex(16);
        let (server, mut port) = duplex(1024);
        let ending = Ending::default();
        port.write_all(&[7; 1024]).await.unwrap();
        port.shutdown().await.unwrap();
        ending.finished.cancel();
        let copying = tokio::spawn(async move { copy(client, server, &ending).await });
        let mut received = Vec::new();
        let read = timeout(DEADLINE, caller.read_to_end(&mut received)).await;
        read.expect("the port's end is passed on").unwrap();
        assert_eq!(received, [7; 1024]);
        let ended = timeout(DEADLINE, copying).await;
        ended.expect("the copy ends").unwrap();
    }

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn error_of_the_connection_is_found_among_the_causes() {
        let lost = Error::new(ErrorCode::BoxLost, "lost");
        let outer = Outer(io::Error::other(lost.clone()));
        assert_eq!(box_connection_error(&outer), Some(lost));
        let other = Outer(io::ErrorKind::ConnectionAborted.into());
        assert_eq!(box_connection_error(&other), None);
    }
}
