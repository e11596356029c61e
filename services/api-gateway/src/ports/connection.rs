//! A connection to a port of a box, as a byte stream for an HTTP client.
//!
//! * I1. At most one chunk waits in each direction, besides the window of the session: a side that
//!   does not read stops the other.
//! * I2. A connection ends with its credential, its caller's right, its environment, and the gateway.
//! * I3. The end of the bytes is the end that the box reported. A connection that was lost is an error,
//!   so that a part of an answer is never taken for the whole.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::environment::Status;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, MAX_CHUNK, OpenKind, ToBox};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::ports::{ConnectPort, PortOutput, port_output};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, PollSender};
use tracing::Instrument;

use crate::box_session::{self, BoxSession};
use crate::lookup::EnvironmentLocation;
use crate::metrics::OpenStream;
use crate::state::{Gateway, OpenSession};
use crate::stream::AccessWatch;

/// How long a port may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Who uses a connection, and for how long.
pub(crate) struct Usage {
    pub user: UserId,
    pub access: AccessWatch,
    /// The user's share of sessions and their memory.
    pub share: OpenSession,
}

/// Connects to a port.
///
/// # Errors
/// [`ErrorCode::NothingListening`], or that the box cannot be reached.
pub(super) async fn connect(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    port: u16,
    usage: Usage,
) -> Result<PortStream, Error> {
    let session = tokio::time::timeout(CONNECT_DEADLINE, open_session(gateway, location, port))
        .await
        .map_err(|_| {
            Error::new(
                ErrorCode::Timeout,
                format!("port {port} of the environment did not accept the connection in time"),
            )
        })??;
    Ok(start(gateway, location.id.clone(), session, usage))
}

async fn open_session(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    port: u16,
) -> Result<BoxSession, Error> {
    let kind = OpenKind::Port(ConnectPort { port: port.into() });
    let mut session = box_session::open(gateway, location, kind).await?;
    match session.recv().await? {
        Some(FromBox::Port(PortOutput {
            output: Some(port_output::Output::Connected(())),
        })) => Ok(session),
        Some(_) => Err(Error::internal()),
        None => Err(lost()),
    }
}

fn lost() -> Error {
    Error::new(
        ErrorCode::BoxLost,
        "the connection to the port of the environment was lost",
    )
}

/// Starts the task that carries the bytes of a connection.
fn start(
    gateway: &Gateway,
    environment: EnvironmentId,
    session: BoxSession,
    usage: Usage,
) -> PortStream {
    let (to_box, to_carry) = mpsc::channel(1);
    let (carried, from_box) = mpsc::channel(1);
    let refused = CancellationToken::new();
    let carrier = carry(
        gateway.clone(),
        environment,
        session,
        usage,
        to_carry,
        carried,
        refused.clone(),
    );
    gateway
        .sockets
        .spawn(carrier.instrument(tracing::Span::current()));
    PortStream {
        to_box: PollSender::new(to_box),
        from_box,
        unread: Bytes::new(),
        has_ended: false,
        refused,
    }
}

/// Carries the bytes of a connection until it ends. An item of `carried` without bytes is the end of
/// what the port sends. Cancels `refused` when the connection ends because it is no longer allowed.
async fn carry(
    gateway: Gateway,
    environment: EnvironmentId,
    session: BoxSession,
    usage: Usage,
    to_carry: mpsc::Receiver<Bytes>,
    carried: mpsc::Sender<io::Result<Bytes>>,
    refused: CancellationToken,
) {
    let Usage {
        user,
        mut access,
        share,
    } = usage;
    let _open = OpenStream::begin("ports");
    let (to_box, from_box) = session.split();
    let unused = carried.clone();
    let mut both = pin!(async {
        tokio::join!(
            write(&gateway, &user, to_carry, to_box),
            read(&gateway, &user, from_box, carried),
        );
    });
    let mut route = gateway.routes.watch(&environment);
    let mut ended =
        pin!(route.wait_for(|route| route.is_some_and(|route| route.status != Status::Running)));
    loop {
        tokio::select! {
            () = &mut both => break,
            () = unused.closed() => break,
            () = &mut ended => {
                refused.cancel();
                break;
            }
            end = access.lapsed() => {
                // Meanwhile neither direction is polled.
                let allowed = match end {
                    Some(end) => Err(end),
                    None => access.allows().await,
                };
                if allowed.is_err() {
                    refused.cancel();
                    break;
                }
            }
        }
    }
    drop(share);
}

/// Sends the caller's bytes, then their end, and waits until the session has ended: without this
/// half it would end at once.
async fn write(
    gateway: &Gateway,
    user: &UserId,
    mut to_carry: mpsc::Receiver<Bytes>,
    mut to_box: SessionSender<ToBox>,
) {
    while let Some(bytes) = to_carry.recv().await {
        gateway.port_rates.pass(user, bytes.len()).await;
        if to_box.send(ToBox::Data(bytes)).await.is_err() {
            // The other direction receives the reason.
            return;
        }
    }
    if to_box.send(ToBox::End).await.is_ok() {
        to_box.closed().await;
    }
}

/// Receives the port's bytes to their end, and then waits until the session has ended.
async fn read(
    gateway: &Gateway,
    user: &UserId,
    mut from_box: SessionReceiver<FromBox>,
    carried: mpsc::Sender<io::Result<Bytes>>,
) {
    loop {
        let part = match from_box.recv().await {
            Ok(Some(FromBox::Port(PortOutput {
                output: Some(output),
            }))) => match output {
                port_output::Output::Data(bytes) if bytes.is_empty() => continue,
                port_output::Output::Data(bytes) => Ok(bytes),
                port_output::Output::End(()) => Ok(Bytes::new()),
                port_output::Output::Connected(()) => Err(Error::internal()),
            },
            Ok(Some(_)) => Err(Error::internal()),
            Ok(None) => Err(lost()),
            Err(error) => Err(error),
        };
        let length = part.as_ref().map_or(0, Bytes::len);
        gateway.port_rates.pass(user, length).await;
        if carried.send(part.map_err(io::Error::other)).await.is_err() {
            return;
        }
        if length == 0 {
            break;
        }
    }
    while let Ok(Some(_)) = from_box.recv().await {}
}

/// The bytes of a connection.
pub(super) struct PortStream {
    to_box: PollSender<Bytes>,
    from_box: mpsc::Receiver<io::Result<Bytes>>,
    unread: Bytes,
    has_ended: bool,
    refused: CancellationToken,
}

impl PortStream {
    /// Cancelled when the connection ends because its credential, its caller's right, its environment
    /// or the gateway has ended.
    pub(super) fn refused(&self) -> CancellationToken {
        self.refused.clone()
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread.is_empty() && !this.has_ended {
            match ready!(this.from_box.poll_recv(cx)) {
                Some(part) => this.unread = part?,
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            }
            this.has_ended = this.unread.is_empty();
        }
        let length = this.unread.len().min(buffer.remaining());
        buffer.put_slice(&this.unread.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(this.to_box.poll_reserve(cx)).map_err(|_| closed())?;
        let part = bytes.get(..MAX_CHUNK).unwrap_or(bytes);
        let sent = this.to_box.send_item(Bytes::copy_from_slice(part));
        sent.map_err(|_| closed())?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().to_box.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn stream() -> (
        PortStream,
        mpsc::Receiver<Bytes>,
        mpsc::Sender<io::Result<Bytes>>,
    ) {
        let (to_box, to_carry) = mpsc::channel(1);
        let (carried, from_box) = mpsc::channel(1);
        let stream = PortStream {
            to_box: PollSender::new(to_box),
            from_box,
            unread: Bytes::new(),
            has_ended: false,
            refused: CancellationToken::new(),
        };
        (stream, to_carry, carried)
    }

    #[tokio::test]
    async fn lost_connection_is_an_error_and_an_end_is_none() {
        let (mut stream, _to_carry, carried) = stream();
        carried.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ab");
        let lost = tokio::spawn(async move {
            carried.send(Ok(Bytes::from_static(b"d"))).await.unwrap();
        });
        let mut rest = Vec::new();
        let error = stream.read_to_end(&mut rest).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(rest, b"cd");
        lost.await.unwrap();

        let (mut stream, _to_carry, carried) = self::stream();
        carried.send(Ok(Bytes::new())).await.unwrap();
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn long_write_is_split_and_a_shutdown_ends_the_bytes() {
        let (mut stream, mut to_carry, _carried) = stream();
        let written = tokio::spawn(async move {
            stream.write_all(&[7; MAX_CHUNK + 1]).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        });
        assert_eq!(to_carry.recv().await.unwrap().len(), MAX_CHUNK);
        assert_eq!(to_carry.recv().await.unwrap().len(), 1);
        assert_eq!(to_carry.recv().await, None);
        let mut stream = written.await.unwrap();
        let refused = stream.write_all(b"late").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    }
}
