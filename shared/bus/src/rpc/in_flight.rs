//! Requests that are being worked on: begun, bounded, answered.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::subjects;
use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::server::Served;
use super::{destination, is_expired};
use crate::trace;

/// Requests that one server works on at once.
const MAX_IN_FLIGHT: usize = 256;
/// A handler that takes longer is given up, or its slot would be lost for ever.
const HANDLER_LIMIT: Duration = Duration::from_secs(120);
/// How long the connection may take to accept a reply.
const HAND_OVER: Duration = Duration::from_secs(5);

pub(super) struct InFlight {
    served: Arc<Served>,
    slots: Arc<Semaphore>,
    tracker: TaskTracker,
    give_up: CancellationToken,
}

impl InFlight {
    pub(super) fn new(served: Served) -> Self {
        Self {
            served: Arc::new(served),
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            tracker: TaskTracker::new(),
            give_up: CancellationToken::new(),
        }
    }

    /// Begins to work on a request, or refuses it. Does not wait.
    pub(super) fn take(&self, message: Message) {
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
            metrics::counter!("agentbox_rpc_refused_total").increment(1);
            let busy = unavailable("too many requests at once; try again");
            self.tracker
                .spawn(async move { served.reply(&message, Err(busy)).await });
            return;
        };
        let give_up = self.give_up.clone();
        self.tracker.spawn(async move {
            let done = give_up.run_until_cancelled(served.answer(&message)).await;
            if done.is_none() {
                let stopping = unavailable("the service is stopping; try again");
                served.reply(&message, Err(stopping)).await;
            }
            drop(slot);
        });
    }

    pub(super) fn client(&self) -> &Client {
        self.served.bus.client()
    }

    pub(super) fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Waits for all that was begun.
    pub(super) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Ends what is still at work; its callers are told.
    pub(super) async fn give_up(&self) {
        self.give_up.cancel();
        self.ended().await;
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
        if is_expired(message) {
            metrics::counter!("agentbox_rpc_expired_total").increment(1);
            return;
        }
        let destination = destination(message.subject.as_str());
        let span = tracing::info_span!(
            "serve",
            otel.name = format!("serve {destination}"),
            otel.kind = "server",
            otel.status_code = tracing::field::Empty,
            messaging.system = "nats",
            messaging.destination.template = destination,
        );
        trace::continue_trace(&span, message.headers.as_ref());
        let begun = Instant::now();
        let work = AssertUnwindSafe((endpoint.handler)(message.payload.clone()))
            .catch_unwind()
            .instrument(span.clone());
        let outcome = match tokio::time::timeout(HANDLER_LIMIT, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                tracing::error!(parent: &span, destination, "a handler panicked");
                Err(Error::internal())
            }
            Err(_) => {
                tracing::error!(parent: &span, destination, "a handler did not end");
                Err(Error::internal())
            }
        };
        let fault = outcome.as_ref().err().filter(|e| e.code.status() >= 500);
        if fault.is_some() {
            span.record("otel.status_code", "ERROR");
        }
        let took = begun.elapsed();
        endpoint.note(took, fault);
        let word = outcome.as_ref().map_or_else(|e| e.code.as_str(), |_| "ok");
        metrics::histogram!("agentbox_rpc_duration_seconds", "method" => destination, "outcome" => word)
            .record(took.as_secs_f64());
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
        let publish = self.bus.client().publish_with_headers(inbox, headers, body);
        match tokio::time::timeout(HAND_OVER, publish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a reply could not be sent"),
            Err(_) => tracing::warn!("a reply could not be sent: the connection takes nothing"),
        }
    }
}
