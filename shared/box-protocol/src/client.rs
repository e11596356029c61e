//! A gRPC client of one boxd over a given byte stream: a TCP connection, a port-forward.
//!
//! Invariants:
//! * I1. The client uses the one stream and never connects by itself. When the stream is
//!   lost, every call fails with UNAVAILABLE, and the owner makes another client.
//! * I2. A silently lost peer is noticed within 10 s (HTTP/2 pings).
//! * I3. No byte of a call is sent to a peer that is not the box's boxd ([`crate::tls`]).
//! * I4. A run with a slow reader fills only its own window; other calls on the connection
//!   continue.
//! * I5. A call whose inputs are [`Inputs`] can be cancelled although boxd does not read them.

mod configure;
mod inputs;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

pub use configure::{ConfigureError, configure};
pub use inputs::Inputs;

use crate::client::inputs::CallExecutor;
use crate::proto::boxd_client::BoxdClient as Stub;
use crate::tls;
use crate::token::{AddToken, BoxToken, TokenError};

/// The interval of pings, and the deadline of each answer.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The flow control window of one stream, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// The limit for streams on one connection.
pub const STREAMS_PER_CONNECTION: u32 = 512;
/// The connection's window: the sum of all streams' windows, so that stalled streams do not
/// block others.
pub const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_PER_CONNECTION;
/// The limit for a frame: a piece of a file or of output fits in one.
pub const MAX_FRAME_BYTES: u32 = 64 * 1024;
/// The size limit of a message, in bytes: the request of a command may have 4 MiB.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// The client that [`connect`] makes: cheap to clone, calls share the connection.
pub type BoxClient = Stub<InterceptedService<Channel, AddToken>>;

/// The deadline of each of the two handshakes, TLS and HTTP/2.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the box's token cannot be sent in a header")]
    Token(#[from] TokenError),
    #[error("the TLS handshake with boxd failed")]
    Tls(#[source] io::Error),
    #[error("the HTTP/2 handshake with boxd failed")]
    Transport(#[from] tonic::transport::Error),
}

/// Encrypts `stream`, checks that its other end is the boxd whose token is `token`, starts HTTP/2
/// and adds the token to every call. Does not wait for a response: call `status` to check that
/// boxd serves.
///
/// # Errors
/// [`ConnectError::Tls`] when the peer is not this boxd, and [`ConnectError::Transport`] when the
/// handshake of HTTP/2 fails, each within 5 s.
pub async fn connect<S>(stream: S, token: &BoxToken) -> Result<BoxClient, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let encrypted = tokio::time::timeout(HANDSHAKE_DEADLINE, tls::connect(stream, token))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(ConnectError::Tls)?;
    start_http2(encrypted, token).await
}

/// Starts HTTP/2 on a stream that is encrypted already, and adds `token` to every call.
///
/// # Errors
/// [`ConnectError::Transport`] when the handshake fails, within 5 s.
pub async fn start_http2<S>(stream: S, token: &BoxToken) -> Result<BoxClient, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = Arc::clone(&stream);
        async move {
            let taken = stream.lock().take();
            taken
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
        }
    });
    let channel = Endpoint::from_static("http://boxd")
        .connect_timeout(HANDSHAKE_DEADLINE)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .executor(CallExecutor)
        .connect_with_connector(connector)
        .await?;
    Ok(Stub::with_interceptor(channel, AddToken::new(token)?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}
