//! Requests in flight: bounded in number and in time, each with a reply.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::permissions::is_inbox;
use agentbox_contracts::subjects;
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::server::Served;
use crate::client::Client;
use crate::message::is_past_deadline;
use crate::{metrics, origin, trace};

/// The most requests that one server processes at once.
const MAX_IN_FLIGHT: usize = 256;
/// A handler that takes longer is aborted, so that its slot becomes free.
const HANDLER_LIMIT: Duration = Duration::from_secs(120);
/// How long the connection may take to accept a reply.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct InFlight {
    served: Arc<Served>,
    slots: Arc<Semaphore>,
    tracker: TaskTracker,
    aborted: CancellationToken,
}

impl InFlight {
    pub(super) fn new(served: Served) -> Self {
        Self {
            served: Arc::new(served),
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            tracker: TaskTracker::new(),
            aborted: CancellationToken::new(),
        }
    }

    /// Starts a request, or refuses it. Does not wait.
    ///
    /// Ignores a message whose reply subject is not an inbox: JetStream has delivered it for a
    /// service that may not send it, or its reply would be a message that its sender may not send.
    pub(super) fn start(&self, message: Message) {
        if !message.reply.as_deref().is_some_and(is_inbox) {
            metrics::rpc_refused("reply_subject");
            tracing::warn!(
                subject = %message.subject,
                reply = message.reply.as_deref().unwrap_or_default(),
                "request ignored: its reply subject is not an inbox"
            );
            return;
        }
        let served = self.served.clone();
        let subject = message.subject.as_str();
        if !served.endpoints.contains_key(subject) {
            if let Some(answer) = served.discovery.answer(subject, &served.endpoints) {
                self.tracker
                    .spawn(async move { served.reply(&message, Ok(answer)).await });
            }
            return;
        }
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            metrics::rpc_refused("limit");
            let busy = unavailable("too many requests at once; try again");
            self.tracker
                .spawn(async move { served.reply(&message, Err(busy)).await });
            return;
        };
        let aborted = self.aborted.clone();
        self.tracker.spawn(async move {
            let done = aborted.run_until_cancelled(served.answer(&message)).await;
            if done.is_none() {
                let stopping = unavailable("the service is stopping; try again");
                served.reply(&message, Err(stopping)).await;
            }
            drop(slot);
        });
    }

    pub(super) fn client(&self) -> &Client {
        &self.served.client
    }

    pub(super) fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Waits for all requests in flight.
    pub(super) async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Aborts the requests in flight. Their callers get an error.
    pub(super) async fn abort(&self) {
        self.aborted.cancel();
        self.wait().await;
    }
}

fn unavailable(message: &str) -> Error {
    Error::new(ErrorCode::Unavailable, message)
}

impl Served {
    async fn answer(&self, message: &Message) {
        let Some(endpoint) = self.endpoints.get(message.subject.as_str()) else {
            return;
        };
        if is_past_deadline(message.headers.as_ref()) {
            metrics::rpc_refused("deadline");
            return;
        }
        let method = trace::method(message.subject.as_str());
        let span = trace::serve_span(message.subject.as_str(), message.headers.as_ref());
        let started_at = Instant::now();
        let handler = (endpoint.handler)(message.payload.clone());
        let handler = origin::serve(origin::extract(message.headers.as_ref()), handler);
        let work = AssertUnwindSafe(handler)
            .catch_unwind()
            .instrument(span.clone());
        let outcome = match tokio::time::timeout(HANDLER_LIMIT, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                tracing::error!(parent: &span, method, "handler panicked");
                Err(Error::internal())
            }
            Err(_) => {
                tracing::error!(parent: &span, method, "handler aborted: it did not complete in time");
                Err(Error::internal())
            }
        };
        let fault = outcome.as_ref().err().filter(|e| e.code.status() >= 500);
        if fault.is_some() {
            trace::record_error(&span);
        }
        let took = started_at.elapsed();
        endpoint.record(took, fault);
        let code = outcome.as_ref().map_or_else(|e| e.code.as_str(), |_| "ok");
        metrics::rpc_served(method, code, took);
        self.reply(message, outcome).instrument(span).await;
    }

    async fn reply(&self, message: &Message, outcome: Result<Bytes, Error>) {
        let Some(inbox) = message.reply.clone() else {
            return;
        };
        let mut headers = HeaderMap::new();
        let body = match outcome {
            Ok(body) => body,
            Err(error) => {
                headers.insert(subjects::HEADER_ERROR, error.code.as_str());
                serde_json::to_vec(&error)
                    .map(Bytes::from)
                    .unwrap_or_default()
            }
        };
        let publish = self
            .client
            .nats()
            .publish_with_headers(inbox, headers, body);
        match tokio::time::timeout(PUBLISH_TIMEOUT, publish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %ErrorChain(&error), "reply not sent");
            }
            Err(_) => tracing::warn!("reply not sent: the connection is blocked"),
        }
    }
}
