//! A connection to a port of a box: the task that carries the bytes of a [`PortStream`].
//!
//! * I1. At most one chunk waits in each direction, besides the window of the session: a side that
//!   does not read stops the other.
//! * I2. A connection ends with its credential, its caller's right, its environment, and the gateway.
//! * I3. The end of the bytes is the end that the box reported. A connection that was lost is an error,
//!   so that a part of an answer is never taken for the whole.
//! * I4. Each direction ends by itself, as in TCP. When one has ended and the other carries nothing for
//!   [`HALF_CLOSED_IDLE`], the connection ends.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::environment::Status;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, OpenKind, ToBox};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::ports::{ConnectPort, PortOutput, port_output};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::port_stream::{Ending, PortStream};
use crate::box_session::{self, BoxSession};
use crate::lookup::EnvironmentLocation;
use crate::metrics::{self, OpenStream};
use crate::state::{Gateway, OpenSession};
use crate::stream::AccessWatch;

/// How long a port may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a connection of which one direction has ended may carry nothing in the other.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(300);

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
    let ending = Ending::default();
    let carrying = carry(
        gateway.clone(),
        environment,
        session,
        usage,
        to_carry,
        carried,
        ending.refused.clone(),
    );
    let finished = ending.finished.clone().drop_guard();
    let carrier = async move {
        carrying.await;
        drop(finished);
    };
    gateway
        .sockets
        .spawn(carrier.instrument(tracing::Span::current()));
    PortStream::new(to_box, from_box, ending)
}

/// Observes the two directions of a connection.
#[derive(Default)]
struct Traffic {
    /// Cancelled when one direction has ended.
    half_closed: CancellationToken,
    /// The port has ended its side.
    port_ended: AtomicBool,
    moved: Notify,
}

impl Traffic {
    /// Returns when one direction has ended, and nothing was carried for `limit` since then.
    async fn idle(&self, limit: Duration) {
        self.half_closed.cancelled().await;
        while tokio::time::timeout(limit, self.moved.notified())
            .await
            .is_ok()
        {}
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
    let traffic = Traffic::default();
    let mut both = pin!(async {
        tokio::join!(
            write(&gateway, &user, to_carry, to_box, &traffic),
            read(&gateway, &user, from_box, carried, &traffic),
        );
    });
    let mut idle = pin!(traffic.idle(HALF_CLOSED_IDLE));
    let mut route = gateway.routes.watch(&environment);
    let mut ended =
        pin!(route.wait_for(|route| route.is_some_and(|route| route.status != Status::Running)));
    let mut is_read = true;
    loop {
        tokio::select! {
            () = &mut both => break,
            // The stream was dropped. When the port has ended, that is no loss, and what the client has
            // sent before is still carried.
            () = unused.closed(), if is_read => {
                is_read = false;
                if !traffic.port_ended.load(Ordering::Relaxed) {
                    break;
                }
            }
            () = &mut ended => {
                refused.cancel();
                break;
            }
            () = &mut idle => {
                metrics::limit_reached("half_closed_connection");
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
    traffic: &Traffic,
) {
    while let Some(bytes) = to_carry.recv().await {
        gateway.port_rates.pass(user, bytes.len()).await;
        if to_box.send(ToBox::Data(bytes)).await.is_err() {
            // The other direction receives the reason.
            return;
        }
        traffic.moved.notify_one();
    }
    if to_box.send(ToBox::End).await.is_ok() {
        traffic.half_closed.cancel();
        to_box.closed().await;
    }
}

/// Receives the port's bytes to their end, and then waits until the session has ended.
async fn read(
    gateway: &Gateway,
    user: &UserId,
    mut from_box: SessionReceiver<FromBox>,
    carried: mpsc::Sender<io::Result<Bytes>>,
    traffic: &Traffic,
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
        if matches!(&part, Ok(bytes) if bytes.is_empty()) {
            traffic.port_ended.store(true, Ordering::Relaxed);
        }
        if carried.send(part.map_err(io::Error::other)).await.is_err() {
            return;
        }
        traffic.moved.notify_one();
        if length == 0 {
            traffic.half_closed.cancel();
            break;
        }
    }
    while let Ok(Some(_)) = from_box.recv().await {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_half_closed_connection_ends_when_it_is_idle() {
        let limit = Duration::from_millis(1);
        let traffic = Traffic::default();
        let mut idle = pin!(traffic.idle(limit));
        let open = tokio::time::timeout(10 * limit, &mut idle).await;
        assert!(open.is_err());
        traffic.half_closed.cancel();
        idle.await;
    }
}
