//! Sessions: two processes exchange messages in order, both ways, with backpressure.
//!
//! One message on a queue-group subject opens a session; its reply subject is the opener's
//! own session subject. The reply subject of every frame is the sender's session subject, so
//! each process needs one subscription for all its sessions. An answer that fits one message
//! takes one request and one reply. A request that is too long for one message continues in the first
//! data frames ([`opening`]).
//!
//! * I1. Messages arrive in order, once each, or the session ends with an error.
//! * I2. At most [`WINDOW`] messages are in flight in one direction: a slow consumer stops
//!   the producer, and each side's memory is bounded.
//! * I3. A peer that sends nothing for [`PEER_TIMEOUT`] is lost. Both ends send something
//!   every second.
//! * I4. Dropping a half before the end resets the session at the peer at once.
//! * I5. The last message of either side ends the session for both.
//!
//! Recovery: a message that has not arrived is sent again after a second without progress, so
//! a reconnect of NATS within [`PEER_TIMEOUT`] loses nothing.

mod acceptor;
mod actor;
mod frame;
mod hub;
mod opening;
mod window;

use std::marker::PhantomData;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::SessionMessage;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use acceptor::{Acceptor, Incoming};
pub(crate) use hub::Hub;
pub use opening::OpenError;

/// Decodes a frame and encodes it again, for the fuzz targets in `loadtest/fuzz`. `None` when the
/// bytes are not a frame.
#[cfg(fuzzing)]
#[must_use]
pub fn reencode_frame(bytes: Bytes) -> Option<Bytes> {
    frame::Frame::decode(bytes).map(|frame| frame.encode())
}

/// The most messages in flight in one direction.
pub const WINDOW: usize = 16;
/// A side that has nothing to send pings this often.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A peer that has sent nothing for so long is lost.
pub(crate) const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that have not arrived are sent again after so long without progress.
pub(crate) const RETRANSMIT_AFTER: Duration = Duration::from_secs(1);
/// When a server that has sent nothing yet sends an accept frame.
pub(crate) const ACCEPT_AFTER: Duration = Duration::from_millis(50);
/// How long the connection may take to accept a frame.
pub(crate) const PUBLISH_TIMEOUT: Duration = Duration::from_millis(500);
/// The largest message: an inline exec result with both streams.
pub(crate) const MAX_BODY: usize = 768 * 1024;

/// A message for the actor to send.
pub(crate) struct Outgoing {
    pub body: Bytes,
    /// For the last message: resolved when the peer has consumed it.
    pub fin: Option<oneshot::Sender<()>>,
}

/// A message that has arrived.
pub(crate) struct Delivered {
    pub body: Bytes,
    pub fin: bool,
}

/// The channels that both halves share with the actor.
#[derive(Clone)]
pub(crate) struct Control {
    /// Ends the actor. The peer gets a reset with this error.
    pub abort: mpsc::Sender<Error>,
    /// Cancelled when the session has ended.
    pub ended: CancellationToken,
    /// One item for each message that the consumer has taken.
    pub taken: mpsc::Sender<()>,
}

/// An open session.
pub struct Session<Out, In> {
    sender: SessionSender<Out>,
    receiver: SessionReceiver<In>,
}

pub struct SessionSender<Out> {
    outgoing: mpsc::Sender<Outgoing>,
    control: Control,
    finished: bool,
    marker: PhantomData<fn(Out)>,
}

pub struct SessionReceiver<In> {
    delivered: mpsc::Receiver<Result<Delivered, Error>>,
    control: Control,
    finished: bool,
    marker: PhantomData<fn() -> In>,
}

fn cancelled() -> Error {
    Error::new(ErrorCode::BoxLost, "the peer closed the session")
}

fn lost() -> Error {
    Error::new(ErrorCode::BoxLost, "the connection to the box was lost")
}

impl<Out: SessionMessage> SessionSender<Out> {
    /// Sends in order; waits while the window is full.
    ///
    /// # Errors
    /// When the session has ended, or the message is too large for one frame.
    pub async fn send(&mut self, message: Out) -> Result<(), Error> {
        self.push(message, None).await
    }

    async fn push(&mut self, message: Out, fin: Option<oneshot::Sender<()>>) -> Result<(), Error> {
        let body = message.encode();
        if body.len() > MAX_BODY {
            return Err(Error::new(
                ErrorCode::PayloadTooLarge,
                format!(
                    "a session message must be at most {MAX_BODY} bytes, got {}",
                    body.len()
                ),
            ));
        }
        self.outgoing
            .send(Outgoing { body, fin })
            .await
            .map_err(|_| lost())
    }

    /// Sends the last message and waits until the peer has consumed it. That ends the session
    /// in both directions: messages that the peer still sends are not delivered.
    ///
    /// # Errors
    /// When the session ends before that.
    pub async fn finish(mut self, last: Out) -> Result<(), Error> {
        let (acknowledged, wait) = oneshot::channel();
        self.push(last, Some(acknowledged)).await?;
        self.finished = true;
        wait.await.map_err(|_| lost())
    }

    /// Ends the session. The peer's next `recv` returns `error`.
    pub async fn fail(mut self, error: Error) {
        self.finished = true;
        // A full or closed channel means that the session already ends for another reason.
        let _ = self.control.abort.try_send(error);
        self.control.ended.cancelled().await;
    }

    /// Resolves when the session has ended, for any reason.
    pub async fn closed(&self) {
        self.control.ended.cancelled().await;
    }
}

impl<In: SessionMessage> SessionReceiver<In> {
    /// The next message; `None` after the peer's last one.
    ///
    /// # Errors
    /// The peer's error, or [`ErrorCode::BoxLost`] when the peer is lost.
    pub async fn recv(&mut self) -> Result<Option<In>, Error> {
        let Some(body) = self.recv_body().await? else {
            return Ok(None);
        };
        In::decode(body).map(Some).map_err(|error| {
            tracing::error!(error = %ErrorChain(&error), "session message not decoded");
            Error::internal()
        })
    }

    /// The next message, encoded.
    async fn recv_body(&mut self) -> Result<Option<Bytes>, Error> {
        if self.finished {
            return Ok(None);
        }
        match self.delivered.recv().await {
            Some(Ok(message)) => {
                self.finished = message.fin;
                // For the actor's count. Without an actor the count does not matter.
                let _ = self.control.taken.try_send(());
                Ok(Some(message.body))
            }
            Some(Err(error)) => {
                self.finished = true;
                Err(error)
            }
            None => {
                self.finished = true;
                Err(lost())
            }
        }
    }
}

impl<Out> Drop for SessionSender<Out> {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.control.abort.try_send(cancelled());
        }
    }
}

impl<In> Drop for SessionReceiver<In> {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.control.abort.try_send(cancelled());
        }
    }
}

impl<Out: SessionMessage, In: SessionMessage> Session<Out, In> {
    pub(crate) fn new(
        outgoing: mpsc::Sender<Outgoing>,
        delivered: mpsc::Receiver<Result<Delivered, Error>>,
        control: Control,
    ) -> Self {
        Self {
            sender: SessionSender {
                outgoing,
                control: control.clone(),
                finished: false,
                marker: PhantomData,
            },
            receiver: SessionReceiver {
                delivered,
                control,
                finished: false,
                marker: PhantomData,
            },
        }
    }

    /// [`SessionSender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&mut self, message: Out) -> Result<(), Error> {
        self.sender.send(message).await
    }

    /// [`SessionReceiver::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv(&mut self) -> Result<Option<In>, Error> {
        self.receiver.recv().await
    }

    /// [`SessionSender::finish`].
    ///
    /// # Errors
    /// As there.
    pub async fn finish(self, last: Out) -> Result<(), Error> {
        let (sender, mut receiver) = self.split();
        // Dropped first, so that a full window does not block a peer that still sends.
        receiver.finished = true;
        drop(receiver);
        sender.finish(last).await
    }

    /// [`SessionSender::fail`].
    pub async fn fail(self, error: Error) {
        let (sender, mut receiver) = self.split();
        receiver.finished = true;
        sender.fail(error).await;
    }

    /// Ends the session without waiting, for a `drop`. The peer's next `recv` returns `error`.
    fn abandon(self, error: Error) {
        // The halves send their own reset after it, which is dropped: the channel has room for one.
        let _ = self.sender.control.abort.try_send(error);
    }

    /// [`SessionSender::closed`].
    pub async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Splits the session into two halves that can be used concurrently.
    #[must_use]
    pub fn split(self) -> (SessionSender<Out>, SessionReceiver<In>) {
        (self.sender, self.receiver)
    }
}
