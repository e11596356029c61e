//! One connection to a port: the stream of what the port sends, and a task that writes the inputs.
//!
//! * I1. Each direction ends by itself, as in TCP: the port may receive after its end, and send after
//!   the caller's. The call ends when both have ended, also while its inputs are open.
//! * I2. A direction that has ended was complete: the caller's bytes are written before the call ends.

use std::io;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::ports::{PortInput, PortOutput, port_input, port_output};
use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::stream::try_unfold;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use super::with_code;

/// What the stream yields next.
enum Phase {
    Connected,
    Open,
    /// The port has sent its last byte. The call is open until the port gets no more.
    Ended,
}

pub struct Connection {
    socket: OwnedReadHalf,
    port: u16,
    phase: Phase,
    closing: CancellationToken,
    /// Cancelled when the port gets no more: the caller has ended, or the port takes nothing.
    writing_ended: CancellationToken,
    /// Ends the task that writes the inputs, when the call ends.
    _close_on_drop: DropGuard,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Starts a task that writes `inputs`. `closing` ends the connection.
    pub(super) fn start(
        socket: TcpStream,
        port: u16,
        inputs: Streaming<PortInput>,
        tasks: &TaskTracker,
        closing: CancellationToken,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let (read, write) = socket.into_split();
        let writing_ended = CancellationToken::new();
        tasks.spawn(write_until(
            closing.clone(),
            inputs,
            OpenHalf {
                socket: write,
                _ended: writing_ended.clone().drop_guard(),
            },
        ));
        Self {
            socket: read,
            port,
            phase: Phase::Connected,
            _close_on_drop: closing.clone().drop_guard(),
            closing,
            writing_ended,
            _place: place,
        }
    }

    /// Ends after the port and the caller have sent all; with ABORTED when the connection fails,
    /// with CANCELLED when the box ends.
    pub fn into_stream(self) -> impl Stream<Item = Result<PortOutput, Status>> + Send {
        try_unfold(self, |mut connection| async move {
            let output = connection.next().await?;
            Ok::<_, Status>(output.map(|output| (output, connection)))
        })
    }

    async fn next(&mut self) -> Result<Option<PortOutput>, Status> {
        let output = match self.phase {
            Phase::Connected => {
                self.phase = Phase::Open;
                port_output::Output::Connected(())
            }
            Phase::Open => {
                let bytes = tokio::select! {
                    bytes = read(&self.socket) => bytes.map_err(|error| self.failed(&error))?,
                    () = self.closing.cancelled() => return Err(closed()),
                };
                if bytes.is_empty() {
                    self.phase = Phase::Ended;
                    port_output::Output::End(())
                } else {
                    port_output::Output::Data(bytes)
                }
            }
            Phase::Ended => {
                tokio::select! {
                    () = self.writing_ended.cancelled() => {}
                    () = self.closing.cancelled() => {}
                }
                return Ok(None);
            }
        };
        Ok(Some(PortOutput {
            output: Some(output),
        }))
    }

    fn failed(&self, error: &io::Error) -> Status {
        let message = format!(
            "the connection to port {} of the environment failed: {error}",
            self.port
        );
        with_code(Status::aborted(message), ErrorCode::NothingListening)
    }
}

fn closed() -> Status {
    Status::cancelled("the connection was closed")
}

/// The next bytes; empty at the end. A connection that waits holds no buffer.
async fn read(socket: &OwnedReadHalf) -> io::Result<Bytes> {
    loop {
        socket.readable().await?;
        let mut buffer = BytesMut::with_capacity(MAX_CHUNK);
        match socket.try_read_buf(&mut buffer) {
            Ok(_) => return Ok(buffer.freeze()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// The half of the socket that is written. Dropping it tells the port that there is no more.
struct OpenHalf {
    // Dropped before the guard, so that the port has the end when the call ends.
    socket: OwnedWriteHalf,
    _ended: DropGuard,
}

/// Writes the inputs until their end. The caller that cancels its call closes the connection.
async fn write_until(closing: CancellationToken, inputs: Streaming<PortInput>, half: OpenHalf) {
    let written = closing.run_until_cancelled(write(inputs, half)).await;
    if let Some(Err(_)) = written {
        closing.cancel();
    }
}

/// # Errors
/// When the call was cancelled, or an input is not one of a connection.
async fn write(mut inputs: Streaming<PortInput>, half: OpenHalf) -> Result<(), Status> {
    let mut half = Some(half);
    while let Some(message) = inputs.message().await? {
        match message.input {
            Some(port_input::Input::Data(bytes)) => {
                if let Some(open) = &mut half
                    && open.socket.write_all(&bytes).await.is_err()
                {
                    // The port reads no more. It may still send.
                    half = None;
                }
            }
            Some(port_input::Input::End(())) => half = None,
            Some(port_input::Input::Connect(_)) | None => {
                return Err(Status::invalid_argument("connect must be the first input"));
            }
        }
    }
    Ok(())
}
