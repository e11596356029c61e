//! The server's side: requests to open a session, and the answers to them.

use std::marker::PhantomData;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::rpc::SessionRpc;
use agentbox_contracts::subjects;
use async_nats::{Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use tracing::Span;

use super::Session;
use super::actor::Role;
use super::hub::Hub;
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
            // As of a forged request: its reply subject is not a session of an opener.
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
            let incoming = Incoming {
                unanswered: Unanswered {
                    hub: self.hub.clone(),
                    peer: Some(peer.to_string()),
                },
                span: trace::serve_span(message.subject.as_str(), message.headers.as_ref()),
                open: message.payload,
                kind: PhantomData,
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
pub struct Incoming<S> {
    unanswered: Unanswered,
    open: Bytes,
    /// Continues the opener's trace.
    pub span: Span,
    kind: PhantomData<fn() -> S>,
}

struct Unanswered {
    hub: Hub,
    peer: Option<String>,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(peer) = self.peer.take() {
            self.hub.reset_now(
                peer,
                Error::new(
                    ErrorCode::Unavailable,
                    "the session was not accepted; try again",
                ),
            );
        }
    }
}

impl<S: SessionRpc> Incoming<S> {
    /// The opener's message.
    ///
    /// # Errors
    /// When it is not the JSON that the contract defines.
    pub fn open(&self) -> Result<S::Open, serde_json::Error> {
        serde_json::from_slice(&self.open)
    }

    /// Accepts the session. The opener learns it from the first message, or after a while from an
    /// accept frame, and can send only then: the server speaks first.
    #[must_use]
    pub fn accept(self) -> Session<S::ToOpener, S::ToServer> {
        self.begin(false)
    }

    /// Accepts the session and sends the accept frame at once: the opener speaks first.
    #[must_use]
    pub fn accept_to_receive(self) -> Session<S::ToOpener, S::ToServer> {
        self.begin(true)
    }

    fn begin(mut self, accepts_at_once: bool) -> Session<S::ToOpener, S::ToServer> {
        // Taken only here, and this consumes the request.
        let peer = self.unanswered.peer.take().unwrap_or_default();
        let role = Role::Server {
            peer,
            accepts_at_once,
        };
        self.unanswered.hub.begin(role).1
    }

    /// Refuses the session. The opener's first `recv` returns `error`.
    pub async fn refuse(mut self, error: Error) {
        if let Some(peer) = self.unanswered.peer.take() {
            self.unanswered.hub.reset(peer, error).await;
        }
    }
}
