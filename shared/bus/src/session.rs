//! Sessions: two processes exchange messages in order, both ways, with backpressure.
//!
//! A session is opened by one message on a queue-group subject; the opener's own session
//! subject is its reply subject. Every frame carries the sender's subject the same way,
//! so each process needs one subscription for all its sessions, and an answer that fits
//! one message costs one request and one reply.
//!
//! * I1. Messages arrive in order, once each, or the session ends with an error.
//! * I2. At most [`WINDOW`] messages are on their way in one direction: a slow consumer
//!   stops the producer, and each side's memory is bounded.
//! * I3. A peer that is silent for [`PEER_SILENCE`] is lost; both ends speak every second.
//! * I4. Dropping a half before the end tells the peer at once.
//! * I5. The last message of either side ends the session for both.
//!
//! Recovery: what has not arrived is sent again after a second without progress, so a
//! reconnect of NATS within [`PEER_SILENCE`] loses nothing.

mod acceptor;
mod actor;
mod frame;
mod hub;
mod window;

use std::marker::PhantomData;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::SessionMessage;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use acceptor::{Acceptor, Incoming};
pub(crate) use hub::Hub;

use crate::connection::Bus;
use crate::error::BusError;

/// Messages on their way in one direction.
pub(crate) const WINDOW: usize = 16;
/// A side that has nothing to say says so this often.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(1);
/// After so long without a word the peer is lost.
pub(crate) const PEER_SILENCE: Duration = Duration::from_secs(5);
/// Without progress for so long, what is not acknowledged is sent again.
pub(crate) const RETRANSMIT_AFTER: Duration = Duration::from_secs(1);
/// A server that has not spoken by then says that it has the session.
pub(crate) const ACCEPT_AFTER: Duration = Duration::from_millis(50);
/// How long the connection may take to accept a frame.
pub(crate) const HAND_OVER: Duration = Duration::from_millis(500);
/// The largest message: an inline exec result in JSON.
pub(crate) const MAX_BODY: usize = 768 * 1024;

/// What the actor is asked to send.
pub(crate) struct Outgoing {
    pub body: Bytes,
    /// The last one: resolved when the peer has it.
    pub fin: Option<oneshot::Sender<()>>,
}

/// One message as it was received.
pub(crate) struct Delivered {
    pub body: Bytes,
    pub fin: bool,
}

/// What both halves share with the actor.
#[derive(Clone)]
pub(crate) struct Control {
    /// Ends the actor; the reset that the peer is sent says why.
    pub abort: mpsc::Sender<Error>,
    /// Cancelled when the session has ended.
    pub ended: CancellationToken,
    /// One permit for each message the consumer has taken.
    pub taken: mpsc::Sender<()>,
}

/// Both halves of a session.
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
    Error::new(ErrorCode::BoxLost, "the other end gave up")
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
                    "a message of {} bytes is over the limit of {MAX_BODY}",
                    body.len()
                ),
            ));
        }
        self.outgoing
            .send(Outgoing { body, fin })
            .await
            .map_err(|_| lost())
    }

    /// Sends the last message and waits until the peer has taken it. That ends the session
    /// in both directions: what the peer still sends is not delivered.
    ///
    /// # Errors
    /// When the session ends before that.
    pub async fn finish(mut self, last: Out) -> Result<(), Error> {
        let (acknowledged, wait) = oneshot::channel();
        self.push(last, Some(acknowledged)).await?;
        self.finished = true;
        wait.await.map_err(|_| lost())
    }

    /// Ends the session; the peer's next `recv` gets `error`.
    pub async fn fail(mut self, error: Error) {
        self.finished = true;
        // Full or closed: another reason is on its way already.
        let _ = self.control.abort.try_send(error);
        self.control.ended.cancelled().await;
    }

    /// Resolves when the session has ended, for whatever reason.
    pub async fn closed(&self) {
        self.control.ended.cancelled().await;
    }
}

impl<In: SessionMessage> SessionReceiver<In> {
    /// The next message; `None` after the peer's last one.
    ///
    /// # Errors
    /// What the peer failed with, or [`ErrorCode::BoxLost`] when it is lost.
    pub async fn recv(&mut self) -> Result<Option<In>, Error> {
        if self.finished {
            return Ok(None);
        }
        match self.delivered.recv().await {
            Some(Ok(message)) => {
                self.finished = message.fin;
                // The actor counts these; when it is gone nobody needs to know.
                let _ = self.control.taken.try_send(());
                In::decode(message.body).map(Some).map_err(|error| {
                    tracing::error!(%error, "a session message cannot be read");
                    Error::internal()
                })
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
        // Gone first, so that a peer that still sends is not held up by a full window.
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

    /// [`SessionSender::closed`].
    pub async fn closed(&self) {
        self.sender.closed().await;
    }

    /// The two halves, for use at the same time.
    #[must_use]
    pub fn split(self) -> (SessionSender<Out>, SessionReceiver<In>) {
        (self.sender, self.receiver)
    }
}

impl Bus {
    /// Opens a session with whoever serves `subject`. Returns as soon as the request is
    /// on its way; that nobody serves it, or does not answer within `deadline`, is the
    /// first `recv`'s error.
    ///
    /// # Errors
    /// When the bus is not connected or the request is too large.
    pub async fn open_session<Out: SessionMessage, In: SessionMessage>(
        &self,
        subject: String,
        open: &impl Serialize,
        deadline: Duration,
    ) -> Result<Session<Out, In>, Error> {
        self.hub().open(subject, open, deadline).await
    }

    /// Serves sessions on `subject`, together with the other members of `queue`.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn accept_sessions(
        &self,
        subject: String,
        queue: &str,
    ) -> Result<Acceptor, BusError> {
        self.hub().accept(subject, queue).await
    }
}
