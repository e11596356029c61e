//! The server's side: requests to open a session, and the answers to them.

use std::marker::PhantomData;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::SessionMessage;
use agentbox_contracts::rpc::SessionRpc;
use agentbox_contracts::subjects::{self, HEADER_OPEN_LENGTH};
use async_nats::{Subject, Subscriber};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::time::Instant;
use tracing::Span;

use super::Session;
use super::actor::Role;
use super::hub::Hub;
use super::opening::{COLLECT_DEADLINE, MAX_REQUEST, OpenError};
use crate::error::BusError;
use crate::message::is_past_deadline;
use crate::subscription::{confirm, leave};
use crate::{metrics, trace};

/// The requests for sessions of one kind.
pub struct Acceptor<S> {
    hub: Hub,
    requests: Subscriber,
    kind: PhantomData<fn() -> S>,
}

impl<S: SessionRpc> Acceptor<S> {
    /// Serves sessions of `cluster`, together with the other members of the queue group.
    pub(crate) async fn subscribe(hub: &Hub, cluster: &str, queue: &str) -> Result<Self, BusError> {
        let requests = hub
            .client()
            .nats()
            .queue_subscribe(subjects::exec_rpc(cluster, S::METHOD), queue.to_owned())
            .await
            .map_err(BusError::nats("subscribing to session requests"))?;
        // After this the caller may report that it is ready.
        confirm(hub.client()).await?;
        Ok(Self {
            hub: hub.clone(),
            requests,
            kind: PhantomData,
        })
    }

    /// The next request. `None` when the bus is closed, and after [`Self::stop`] once every
    /// received request was returned.
    pub async fn next(&mut self) -> Option<Incoming<S>> {
        loop {
            let message = self.requests.next().await?;
            // The request is forged: its reply subject is not a session of an opener.
            let is_opener = |peer: &Subject| self.hub.is_peer(peer);
            let Some(peer) = message.reply.clone().filter(is_opener) else {
                metrics::session_foreign_frame();
                continue;
            };
            if is_past_deadline(message.headers.as_ref()) {
                // It was queued during an outage, and its opener has stopped waiting.
                metrics::session_expired();
                continue;
            }
            let headers = message.headers.as_ref();
            let length = headers.and_then(|headers| headers.get(HEADER_OPEN_LENGTH));
            let incoming = Incoming {
                unanswered: Unanswered {
                    hub: self.hub.clone(),
                    stage: Some(Stage::Requested {
                        peer: peer.to_string(),
                    }),
                },
                span: trace::serve_span(message.subject.as_str(), headers),
                // A length that is no number is above every limit.
                length: length.map(|length| length.as_str().parse().unwrap_or(usize::MAX)),
                open: message.payload,
            };
            if self.hub.is_full() {
                incoming.refuse(super::hub::too_many()).await;
                continue;
            }
            return Some(incoming);
        }
    }

    /// Leaves the queue group: its other members get the next requests.
    pub async fn stop(&mut self) {
        leave(self.hub.client(), [&mut self.requests]).await;
    }
}

/// A request to open a session. It is refused when it is dropped without an answer.
pub struct Incoming<S: SessionRpc> {
    unanswered: Unanswered<S>,
    /// The opener's message, or its first part.
    open: Bytes,
    /// The length of the opener's message when `open` is its first part.
    length: Option<usize>,
    /// Continues the opener's trace.
    pub span: Span,
}

struct Unanswered<S: SessionRpc> {
    hub: Hub,
    /// `None` once it was answered.
    stage: Option<Stage<S>>,
}

enum Stage<S: SessionRpc> {
    Requested {
        peer: String,
    },
    /// The session has begun, to receive the rest of the request.
    Begun(Session<S::ToOpener, S::ToServer>),
}

impl<S: SessionRpc> Drop for Unanswered<S> {
    fn drop(&mut self) {
        let error = || {
            Error::new(
                ErrorCode::Unavailable,
                "the session was not accepted; try again",
            )
        };
        match self.stage.take() {
            Some(Stage::Requested { peer }) => self.hub.reset_now(peer, error()),
            Some(Stage::Begun(session)) => session.abandon(error()),
            None => {}
        }
    }
}

impl<S: SessionRpc> Unanswered<S> {
    /// The session, which begins unless it has begun already.
    fn begin(&mut self, accepts_at_once: bool) -> Session<S::ToOpener, S::ToServer> {
        let peer = match self.stage.take() {
            Some(Stage::Begun(session)) => return session,
            Some(Stage::Requested { peer }) => peer,
            // Not reached: an answer consumes the request.
            None => String::new(),
        };
        let role = Role::Server {
            peer,
            accepts_at_once,
        };
        self.hub.begin(role).1
    }
}

impl<S: SessionRpc> Incoming<S> {
    /// The opener's message. Receives the rest of one that is longer than a message of the bus; the
    /// opener learns then that the session is served.
    ///
    /// # Errors
    /// When it is not as the contract defines it, is longer than 8 MiB, or does not arrive within 10 s.
    pub async fn open(&mut self) -> Result<S::Open, OpenError> {
        if let Some(length) = self.length {
            if length > MAX_REQUEST {
                return Err(OpenError::TooLarge(length));
            }
            self.open = self.collect(length).await?;
            self.length = None;
        }
        Ok(<S::Open as SessionMessage>::decode(self.open.clone())?)
    }

    /// Receives the rest of the opener's message, which has `length` bytes.
    async fn collect(&mut self, length: usize) -> Result<Bytes, OpenError> {
        let deadline = Instant::now() + COLLECT_DEADLINE;
        let mut session = self.unanswered.begin(true);
        let mut whole = BytesMut::from(self.open.as_ref());
        let received = loop {
            if whole.len() == length {
                break Ok(whole.freeze());
            }
            if whole.len() > length {
                break Err(OpenError::TooLong {
                    announced: length,
                    got: whole.len(),
                });
            }
            match tokio::time::timeout_at(deadline, session.receiver.recv_body()).await {
                Ok(Ok(Some(part))) => whole.extend_from_slice(&part),
                Ok(Ok(None)) => break Err(OpenError::Interrupted(super::cancelled())),
                Ok(Err(error)) => break Err(OpenError::Interrupted(error)),
                Err(_) => break Err(OpenError::Late),
            }
        };
        self.unanswered.stage = Some(Stage::Begun(session));
        received
    }

    /// Accepts the session. The opener learns it from the first message, or after a while from an
    /// accept frame, and can send only then: the server speaks first.
    #[must_use]
    pub fn accept(mut self) -> Session<S::ToOpener, S::ToServer> {
        self.unanswered.begin(false)
    }

    /// Accepts the session and sends the accept frame at once: the opener speaks first.
    #[must_use]
    pub fn accept_to_receive(mut self) -> Session<S::ToOpener, S::ToServer> {
        self.unanswered.begin(true)
    }

    /// Refuses the session. The opener's first `recv` returns `error`.
    pub async fn refuse(mut self, error: Error) {
        match self.unanswered.stage.take() {
            Some(Stage::Requested { peer }) => self.unanswered.hub.reset(peer, error).await,
            Some(Stage::Begun(session)) => session.fail(error).await,
            None => {}
        }
    }
}
