//! Forwards the data of an attached terminal in both directions until one side ends.

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentbox_api::attach::{OutputOffsets, ServerMessage};
use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::executions::{Attached, Execution, execution_output};
use agentbox_contracts::logs::OutputStream;
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::close::Close;
use super::end::End;
use super::protocol::{Output, exit, exit_of, frame, start_failure, to_box};
use crate::box_loss;
use crate::box_session::BoxSession;
use crate::edge::slots::Slot;
use crate::exec::stdin_messages;
use crate::executions::control;
use crate::executions::session;
use crate::lookup::EnvironmentLocation;
use crate::metrics::OpenStream;
use crate::state::{Gateway, OpenSession};
use crate::stream::AccessWatch;

/// A send that takes longer was waiting for the client to read.
const SLOW_SEND: Duration = Duration::from_millis(200);
/// How long the close handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Errors about the client's messages that may wait to be sent; further ones are dropped.
const PENDING_ERRORS: usize = 8;

type Sink = SplitSink<WebSocket, Message>;
type Source = SplitStream<WebSocket>;

/// An attached execution whose socket is not open yet.
pub(super) struct Terminal {
    pub gateway: Gateway,
    pub location: EnvironmentLocation,
    pub session: BoxSession,
    pub attached: Attached,
    pub access: AccessWatch,
    pub is_binary: bool,
    /// The socket is that of a terminal: its client ends the command by closing it.
    pub is_owned: bool,
    /// The connection's slot, held as long as the socket is open.
    pub slot: Option<Slot>,
    /// The user's share of sessions and their memory, held as long.
    pub share: OpenSession,
}

/// Whether the client has sent anything since the last ping.
struct Liveness {
    is_alive: AtomicBool,
    /// The last message of the client waits for a command that does not read its stdin. Until it is
    /// read, no further message of the client is received, pongs included.
    input_blocked: AtomicBool,
}

impl Liveness {
    const fn new() -> Self {
        Self {
            is_alive: AtomicBool::new(true),
            input_blocked: AtomicBool::new(false),
        }
    }

    fn record(&self) {
        self.is_alive.store(true, Ordering::Relaxed);
    }

    fn set_input_blocked(&self, blocked: bool) {
        self.input_blocked.store(blocked, Ordering::Relaxed);
    }

    /// Whether the client is alive; starts a new interval.
    fn check(&self) -> bool {
        self.is_alive.swap(false, Ordering::Relaxed) || self.input_blocked.load(Ordering::Relaxed)
    }
}

impl Terminal {
    pub(super) async fn serve(self, socket: WebSocket) {
        let Self {
            gateway,
            location,
            session,
            attached,
            mut access,
            is_binary,
            is_owned,
            slot,
            share,
        } = self;
        let _open = OpenStream::begin("attach");
        let id = attached.execution.id.clone();
        let (to_box, from_box) = session.split();
        let (mut sink, mut source) = socket.split();
        let (errors, pending_errors) = mpsc::channel(PENDING_ERRORS);
        let liveness = Liveness::new();
        let outbound = Outbound {
            sink: &mut sink,
            from_box,
            errors: pending_errors,
            liveness: &liveness,
            output: Output::new(is_binary),
            ping: gateway.config.ping_interval(),
        };
        let end = {
            let mut outbound = pin!(outbound.run(attached));
            let mut inbound = pin!(inbound(&mut source, to_box, &errors, &liveness));
            loop {
                tokio::select! {
                    end = &mut outbound => match end {
                        End::Failed(error) => {
                            let id = &location.id;
                            break End::Failed(box_loss::classify(&gateway, id, error).await);
                        }
                        end => break end,
                    },
                    end = &mut inbound => break end,
                    end = access.lapsed() => {
                        // Meanwhile neither direction is polled.
                        let allowed = match end {
                            Some(end) => Err(end),
                            None => access.allows().await,
                        };
                        match allowed {
                            // The client's pongs have not been read.
                            Ok(()) => liveness.record(),
                            Err(end) => break End::Ended(end),
                        }
                    }
                }
            }
        };
        if is_owned && end.ends_command() {
            control::kill(&gateway, &location, &id).await;
        }
        if let Some(close) = end.close() {
            // The client may have stopped reading.
            let _ = timeout(
                CLOSE_TIMEOUT,
                close_handshake(&mut sink, &mut source, &close),
            )
            .await;
        }
        drop((slot, share));
    }
}

/// Sends the error and the close frame, and reads until the client has closed too. Dropping the
/// connection while the client still sends would discard frames that it has not read yet.
async fn close_handshake(sink: &mut Sink, source: &mut Source, close: &Close) {
    if let Some(message) = close.error.clone() {
        // If this fails the close frame fails too.
        let _ = sink.send(frame(&ServerMessage::Error { message })).await;
    }
    if sink.send(Message::Close(Some(close.frame()))).await.is_ok() {
        while let Some(Ok(_)) = source.next().await {}
    }
}

/// The direction from the box to the client.
struct Outbound<'a> {
    sink: &'a mut Sink,
    from_box: SessionReceiver<FromBox>,
    errors: mpsc::Receiver<Error>,
    liveness: &'a Liveness,
    output: Output,
    ping: Duration,
}

impl Outbound<'_> {
    /// Runs until the command ends, the session breaks or the client is gone.
    async fn run(mut self, attached: Attached) -> End {
        self.forward_all(attached).await.unwrap_or(End::Lost(None))
    }

    /// As [`Self::run`]; `None` if the client has disconnected.
    async fn forward_all(&mut self, attached: Attached) -> Option<End> {
        self.send(frame(&ready(&attached))).await?;
        let mut ping = interval_at(Instant::now() + self.ping, self.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = self.from_box.recv() => {
                    let output = match message.and_then(session::output) {
                        Ok(output) => output,
                        Err(error) => return Some(End::Failed(error)),
                    };
                    if let ControlFlow::Break(end) = self.forward(output).await? {
                        return Some(end);
                    }
                }
                Some(error) = self.errors.recv() => {
                    let message = error.message;
                    self.send(frame(&ServerMessage::Error { message })).await?;
                }
                _ = ping.tick() => {
                    if !self.liveness.check() {
                        let close = Close::new(4408, "the client did not answer pings");
                        return Some(End::Lost(Some(close)));
                    }
                    self.send(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }

    /// Sends one message of the box. Breaks when the command has ended or failed; `None` if the
    /// client has disconnected.
    async fn forward(&mut self, output: execution_output::Output) -> Option<ControlFlow<End>> {
        use execution_output::Output as FromExecution;
        let message = match output {
            FromExecution::Output(piece) => self.output.frame(&piece),
            FromExecution::Gap(gap) => Some(frame(&ServerMessage::Gap {
                stream: match gap.stderr {
                    true => OutputStream::Stderr,
                    false => OutputStream::Stdout,
                },
                bytes: gap.bytes,
            })),
            FromExecution::HasInput(true) => Some(frame(&ServerMessage::InputGranted {})),
            FromExecution::HasInput(false) => Some(frame(&ServerMessage::InputTaken {})),
            FromExecution::Execution(execution) => return self.finish(&execution).await,
            FromExecution::Executions(_) | FromExecution::Attached(_) => {
                return Some(ControlFlow::Break(End::Failed(Error::internal())));
            }
        };
        if let Some(message) = message {
            self.send(message).await?;
        }
        Some(ControlFlow::Continue(()))
    }

    /// Sends what is left, and the exit.
    async fn finish(&mut self, execution: &Execution) -> Option<ControlFlow<End>> {
        let failure = start_failure(execution);
        let failure = failure.and_then(|piece| self.output.frame(&piece));
        let held: Vec<Message> = failure.into_iter().chain(self.output.finish()).collect();
        for frame in held {
            self.send(frame).await?;
        }
        self.send(exit(&exit_of(execution))).await?;
        Some(ControlFlow::Break(End::Exited))
    }

    /// Sends a message, and waits while the client does not read. `None` if the connection is
    /// broken.
    async fn send(&mut self, message: Message) -> Option<()> {
        let begun = Instant::now();
        self.sink.send(message).await.ok()?;
        if begun.elapsed() > SLOW_SEND {
            // The client had stopped reading and reads again, so it is alive.
            self.liveness.record();
        }
        Some(())
    }
}

fn ready(attached: &Attached) -> ServerMessage {
    ServerMessage::Ready {
        session_id: attached.execution.id.clone(),
        offsets: OutputOffsets {
            stdout: attached.offsets.stdout,
            stderr: attached.offsets.stderr,
        },
        has_input: attached.has_input,
    }
}

/// The direction from the client to the box. Runs until the client is gone or sends a frame that cannot
/// be answered.
async fn inbound(
    source: &mut Source,
    mut command: SessionSender<ToBox>,
    errors: &mpsc::Sender<Error>,
    liveness: &Liveness,
) -> End {
    loop {
        let frame = match source.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return refusal(&error),
            None => return End::Lost(None),
        };
        liveness.record();
        let messages = match frame {
            Message::Text(text) => match to_box(&text) {
                Ok(messages) => messages,
                Err(error) => {
                    // When the channel is full the client has enough errors to read.
                    let _ = errors.try_send(error);
                    continue;
                }
            },
            Message::Binary(bytes) => stdin_messages(bytes),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return End::Closed,
        };
        for message in messages {
            liveness.set_input_blocked(true);
            if command.send(message).await.is_err() {
                // The outbound direction receives the reason and reports it.
                return std::future::pending().await;
            }
            liveness.set_input_blocked(false);
        }
    }
}

/// The end by a frame that is too large, or a broken connection. The library tells them apart only by
/// the text of its error.
fn refusal(error: &axum::Error) -> End {
    if error.to_string().contains("too long") {
        return End::Misused(Close::new(1009, "a message must be at most 256 KiB"));
    }
    End::Lost(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_client_is_gone_unless_its_input_is_blocked() {
        let liveness = Liveness::new();
        assert!(liveness.check());
        assert!(!liveness.check());
        liveness.record();
        assert!(liveness.check());
        liveness.set_input_blocked(true);
        assert!(liveness.check() && liveness.check());
        liveness.set_input_blocked(false);
        assert!(!liveness.check());
    }
}
