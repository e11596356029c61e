//! A gRPC client to one boxd over a byte stream that is already there: a TCP
//! connection, a port-forward.
//!
//! Invariants:
//! * I1. One stream, one connection: when it is lost every call fails with UNAVAILABLE
//!   and the owner builds another client; it never dials by itself.
//! * I2. A peer that vanished silently is noticed within 10 s (HTTP/2 pings).
//! * I3. A run whose reader is slow holds its own window only; other calls on the same
//!   connection go on.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::proto::boxd_client::BoxdClient as Stub;
use crate::token::{AddToken, BoxToken, TokenError};

/// Pings are sent this often, and answered within as long.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Bytes of one stream that may be under way unread.
pub const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// Streams on one connection that may all be stalled while another still moves.
pub const STREAMS_PER_CONNECTION: u32 = 512;
/// Room for every stream's window, so that no stalled stream stops another.
pub const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_PER_CONNECTION;
/// The largest message either end accepts: a command with 1 MiB of arguments,
/// environment and stdin fits.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// The client that [`connect`] makes: cheap to clone, calls share the connection.
pub type BoxClient = Stub<InterceptedService<Channel, AddToken>>;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the box's token cannot be sent")]
    Token(#[from] TokenError),
    #[error("no HTTP/2 connection to boxd")]
    Transport(#[from] tonic::transport::Error),
}

/// Speaks HTTP/2 on `stream`, with `token` in every call. Does not wait for an answer:
/// call `status` to know that boxd serves.
///
/// # Errors
/// [`ConnectError::Transport`] when the handshake fails, within 5 s.
pub async fn connect<S>(stream: S, token: &BoxToken) -> Result<BoxClient, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = Arc::clone(&stream);
        async move {
            let taken = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            taken
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
        }
    });
    let channel = Endpoint::from_static("http://boxd")
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector(connector)
        .await?;
    Ok(Stub::with_interceptor(channel, AddToken::new(token)?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}
