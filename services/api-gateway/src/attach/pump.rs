//! Carries an attached terminal: two directions at the same time, until one side ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentbox_api::attach::ServerMessage;
use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::ids::{EnvironmentId, ExecId};
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::AttachSession;
use super::close::Close;
use super::protocol::{Output, exit, frame, stdin, to_box};
use crate::edge::server::Slot;
use crate::lost;
use crate::metrics::OpenStream;
use crate::state::Gateway;
use crate::stream::Watch;

/// Sending took so long only because the client did not read.
const SLOW: Duration = Duration::from_millis(200);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// Complaints about messages that wait to be sent; more are not made.
const COMPLAINTS: usize = 8;

type Sink = SplitSink<WebSocket, Message>;
type Source = SplitStream<WebSocket>;

/// An attached command before its socket is there.
pub(super) struct Terminal {
    pub gateway: Gateway,
    pub environment: EnvironmentId,
    pub session: AttachSession,
    pub id: ExecId,
    pub watch: Watch,
    pub is_binary: bool,
    /// Its connection's place, kept as long as the socket.
    pub slot: Option<Slot>,
}

/// Whether the client was heard since it was last asked.
struct Heard {
    heard: AtomicBool,
    /// Nobody listens: what it said last waits for a command that does not read.
    is_deaf: AtomicBool,
}

impl Heard {
    const fn new() -> Self {
        Self {
            heard: AtomicBool::new(true),
            is_deaf: AtomicBool::new(false),
        }
    }

    fn note(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    fn listen(&self, listens: bool) {
        self.is_deaf.store(!listens, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed) || self.is_deaf.load(Ordering::Relaxed)
    }
}

impl Terminal {
    pub(super) async fn serve(self, socket: WebSocket) {
        let Self {
            gateway,
            environment,
            session,
            id,
            mut watch,
            is_binary,
            slot,
        } = self;
        let _open = OpenStream::begin("attach");
        let (to_box, from_box) = session.split();
        let (mut sink, mut source) = socket.split();
        let (complain, complaints) = mpsc::channel(COMPLAINTS);
        let heard = Heard::new();
        let outwards = Outwards {
            sink: &mut sink,
            from_box,
            complaints,
            heard: &heard,
            output: Output::new(is_binary),
            ping: gateway.config.ping_interval(),
        };
        let close = tokio::select! {
            end = outwards.run(id) => match end {
                Some(Ok(close)) => Some(close),
                Some(Err(error)) => {
                    let error = lost::judged(&gateway, &environment, error).await;
                    Some(Close::failed(&error))
                }
                None => None,
            },
            close = inwards(&mut source, to_box, &complain, &heard) => close,
            ended = watch.ended() => Some(ended.into()),
        };
        if let Some(close) = close {
            // The client may not be reading any more.
            let _ = timeout(GOODBYE, goodbye(&mut sink, &mut source, &close)).await;
        }
        drop(slot);
    }
}

/// Says why, closes, and reads until the client has closed too: ending the connection
/// while it still sends would destroy what it has not read yet.
async fn goodbye(sink: &mut Sink, source: &mut Source, close: &Close) {
    if let Some(message) = close.error.clone() {
        // Failing, the next one fails too.
        let _ = sink.send(frame(&ServerMessage::Error { message })).await;
    }
    if sink.send(Message::Close(Some(close.frame()))).await.is_ok() {
        while let Some(Ok(_)) = source.next().await {}
    }
}

/// Box to client.
struct Outwards<'a> {
    sink: &'a mut Sink,
    from_box: SessionReceiver<FromBox>,
    complaints: mpsc::Receiver<Error>,
    heard: &'a Heard,
    output: Output,
    ping: Duration,
}

impl Outwards<'_> {
    /// Until the command ends, or fails, or the client is gone (`None`).
    async fn run(mut self, id: ExecId) -> Option<Result<Close, Error>> {
        let ready = ServerMessage::Ready {
            session_id: id.to_string(),
        };
        self.send(frame(&ready)).await?;
        let mut ping = interval_at(Instant::now() + self.ping, self.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = self.from_box.recv() => {
                    if let Some(end) = self.take(message).await? {
                        return Some(end);
                    }
                }
                Some(error) = self.complaints.recv() => {
                    let message = error.message;
                    self.send(frame(&ServerMessage::Error { message })).await?;
                }
                _ = ping.tick() => {
                    if !self.heard.take() {
                        return Some(Ok(Close::new(4408, "the client does not answer")));
                    }
                    self.send(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }

    /// `Some(None)`: it goes on.
    async fn take(
        &mut self,
        message: Result<Option<FromBox>, Error>,
    ) -> Option<Option<Result<Close, Error>>> {
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => {
                let error = Error::new(ErrorCode::BoxLost, "the command's end is not known");
                return Some(Some(Err(error)));
            }
            Err(error) => return Some(Some(Err(error))),
        };
        match message {
            FromBox::Stdout(_) | FromBox::Stderr(_) => {
                if let Some(frame) = self.output.frame(message) {
                    self.send(frame).await?;
                }
                Some(None)
            }
            FromBox::Exit(ended) => {
                let held: Vec<Message> = self.output.finish().collect();
                for frame in held {
                    self.send(frame).await?;
                }
                self.send(exit(&ended)).await?;
                Some(Some(Ok(Close::exited())))
            }
            _ => Some(Some(Err(Error::internal()))),
        }
    }

    /// Waits as long as the client takes to read; a client that is gone is noticed by
    /// TCP. `None`: it is.
    async fn send(&mut self, message: Message) -> Option<()> {
        let begun = Instant::now();
        self.sink.send(message).await.ok()?;
        if begun.elapsed() > SLOW {
            // It had stopped reading and reads again: it is there.
            self.heard.note();
        }
        Some(())
    }
}

/// Client to box, until the client goes (`None`) or says what cannot be answered.
async fn inwards(
    source: &mut Source,
    mut command: SessionSender<ToBox>,
    complain: &mpsc::Sender<Error>,
    heard: &Heard,
) -> Option<Close> {
    loop {
        let frame = match source.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return refusal(&error),
            None => return None,
        };
        heard.note();
        let messages = match frame {
            Message::Text(text) => match to_box(&text) {
                Ok(messages) => messages,
                Err(error) => {
                    // Full: the client has complaints enough to read.
                    let _ = complain.try_send(error);
                    continue;
                }
            },
            Message::Binary(bytes) => stdin(bytes),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return None,
        };
        for message in messages {
            heard.listen(false);
            if command.send(message).await.is_err() {
                // The other direction learns why, and says it.
                return std::future::pending().await;
            }
            heard.listen(true);
        }
    }
}

/// A frame that cannot be taken; anything else is a connection that broke. The library
/// tells them apart by its text alone.
fn refusal(error: &axum::Error) -> Option<Close> {
    let text = error.to_string();
    text.contains("too long")
        .then(|| Close::new(1009, "a message may have 1 MiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_gone_when_it_was_not_heard_between_two_questions() {
        let heard = Heard::new();
        assert!(heard.take());
        assert!(!heard.take());
        heard.note();
        assert!(heard.take());
        heard.listen(false);
        assert!(heard.take() && heard.take());
        heard.listen(true);
        assert!(!heard.take());
    }
}
