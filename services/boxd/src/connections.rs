//! The connections of boxd's clients: accepted and encrypted, before a byte is read as HTTP/2.
//!
//! * I1. A client that is silent, or speaks no TLS, delays no other one: handshakes run at the
//!   same time, each within its deadline.
//! * I2. A handshake needs no thread, no process and no descriptor besides its connection's.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::TcpIncoming;

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
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> + Send {
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
            let accepting = timeout(HANDSHAKE_DEADLINE, tls.accept(stream));
            async move {
                let accepted = accepting.await;
                drop(place);
                accepted.ok()?.ok()
            }
        })
        .buffer_unordered(HANDSHAKES)
        .filter_map(|secured| ready(secured.map(Ok)))
}
