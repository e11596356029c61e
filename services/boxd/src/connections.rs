//! The connections of boxd's clients: accepted and encrypted, before a byte is read as HTTP/2.
//!
//! * I1. A client that is silent, or speaks no TLS, delays no other one: handshakes run at the
//!   same time, each within its deadline.
//! * I2. A handshake needs no thread, no process and no descriptor besides its connection's.

use std::future::ready;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agentbox_box_protocol::tls::buffered;
use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpIncoming};

use crate::stderr;

/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The deadline of a handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// The limit of handshakes at the same time. Beyond it connections wait in the listener's queue.
const HANDSHAKES: usize = 512;

/// The connections whose handshake has succeeded.
pub fn incoming(
    listener: TcpListener,
    tls: TlsAcceptor,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let places = Arc::new(());
    let mut is_limit_reported = false;
    TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        // Without a free descriptor every accept fails at once, and nothing reports when one is
        // free.
        .then(|accepted| async move {
            if accepted.is_err() {
                sleep(ACCEPT_PAUSE).await;
            }
            accepted
        })
        .filter_map(|accepted| ready(accepted.ok()))
        .map(move |stream| {
            let place = Arc::clone(&places);
            // One reference is the original's.
            if Arc::strong_count(&places) > HANDSHAKES && !is_limit_reported {
                is_limit_reported = true;
                stderr::line(&format!(
                    "boxd: {HANDSHAKES} connections wait for their TLS handshake, which is the limit"
                ));
            }
            let accepting = timeout(HANDSHAKE_DEADLINE, tls.accept(buffered(stream)));
            async move {
                let accepted = accepting.await;
                drop(place);
                accepted.ok()?.ok()
            }
        })
        .buffer_unordered(HANDSHAKES)
        .filter_map(|secured| ready(secured.map(|stream| Ok(Connection(stream)))))
}

/// An encrypted connection. With tonic's own support of TLS, boxd would contain TLS 1.2 too.
pub struct Connection(TlsStream<BufReader<TcpStream>>);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
