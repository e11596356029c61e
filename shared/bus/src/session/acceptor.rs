//! The serving end: requests to open a session, and their first answer.

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::SessionMessage;
use async_nats::Subscriber;
use bytes::Bytes;
use futures::StreamExt;
use tracing::Span;

use super::Session;
use super::actor::Role;
use super::hub::Hub;
use crate::rpc::is_expired;
use crate::trace;

/// Session requests, as they come.
pub struct Acceptor {
    hub: Hub,
    requests: Subscriber,
}

impl Acceptor {
    pub(super) fn new(hub: Hub, requests: Subscriber) -> Self {
        Self { hub, requests }
    }

    /// The next request; `None` after [`Self::stop`], when all that had come by then was
    /// returned, and when the bus has been closed.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            let message = self.requests.next().await?;
            let Some(peer) = message.reply.clone() else {
                continue;
            };
            if is_expired(&message) {
                // It waited out an outage; its opener has given up.
                metrics::counter!("agentbox_session_expired_total").increment(1);
                continue;
            }
            let span = tracing::info_span!(
                "session",
                otel.name = "serve exec.open",
                otel.kind = "server",
                otel.status_code = tracing::field::Empty,
                messaging.system = "nats",
                messaging.destination.template = "exec.open",
            );
            trace::continue_trace(&span, message.headers.as_ref());
            let incoming = Incoming {
                unanswered: Unanswered {
                    hub: self.hub.clone(),
                    peer: Some(peer.to_string()),
                },
                open: message.payload,
                span,
            };
            if self.hub.is_full() {
                incoming.refuse(super::hub::too_many()).await;
                continue;
            }
            return Some(incoming);
        }
    }

    /// No more requests; others of the queue group get them.
    pub async fn stop(&mut self) {
        self.hub.leave(&mut self.requests).await;
    }
}

/// A request to open a session. Dropped without an answer it is refused.
pub struct Incoming {
    unanswered: Unanswered,
    /// What the opener sent.
    pub open: Bytes,
    /// Continues the opener's trace.
    pub span: Span,
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
                    "the session was not taken up; try again",
                ),
            );
        }
    }
}

impl Incoming {
    #[must_use]
    pub fn accept<Out: SessionMessage, In: SessionMessage>(mut self) -> Session<Out, In> {
        // Taken only here, and `accept` consumes the request.
        let peer = self.unanswered.peer.take().unwrap_or_default();
        self.unanswered.hub.begin(Role::Server { peer }).1
    }

    /// The opener's first `recv` gets `error`.
    pub async fn refuse(mut self, error: Error) {
        if let Some(peer) = self.unanswered.peer.take() {
            self.unanswered.hub.reset(peer, error).await;
        }
    }
}
