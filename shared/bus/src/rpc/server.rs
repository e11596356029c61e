//! The answering end: handlers by subject, a bounded number at once.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::rpc::Rpc;
use agentbox_contracts::subjects;
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::SelectAll;
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::{destination, encode, is_expired};
use crate::connection::Bus;
use crate::error::BusError;
use crate::trace;

/// Requests that one server works on at once.
const MAX_IN_FLIGHT: usize = 256;
/// How long requests in flight may take to end when the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// A handler that takes longer is given up, or its slot would be lost for ever.
const HANDLER_LIMIT: Duration = Duration::from_secs(120);

type Handler = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, Error>> + Send + Sync>;

/// Answers requests; replicas share them through a queue group.
pub struct Server {
    bus: Bus,
    service: &'static str,
    handlers: HashMap<String, Handler>,
}

impl Server {
    pub(super) fn new(bus: Bus, service: &'static str) -> Self {
        Self {
            bus,
            service,
            handlers: HashMap::new(),
        }
    }

    /// Answers `R` with `handler`.
    #[must_use]
    pub fn on<R: Rpc, F, Fut>(self, handler: F) -> Self
    where
        F: Fn(R::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Reply, Error>> + Send + 'static,
    {
        self.on_subject(subjects::rpc(R::SERVICE, R::METHOD), handler)
    }

    /// Answers requests on `subject` with `handler`.
    #[must_use]
    pub fn on_subject<Q, P, F, Fut>(mut self, subject: String, handler: F) -> Self
    where
        Q: DeserializeOwned + Send + 'static,
        P: Serialize + Send + 'static,
        F: Fn(Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<P, Error>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let erased: Handler = Arc::new(move |body: Bytes| {
            let handler = handler.clone();
            async move {
                let request = serde_json::from_slice(&body).map_err(|error| {
                    tracing::error!(%error, "a request cannot be read");
                    Error::new(ErrorCode::BadRequest, "the request cannot be read")
                })?;
                encode(&handler(request).await?)
            }
            .boxed()
        });
        self.handlers.insert(subject, erased);
        self
    }

    /// Serves until `shutdown`, then lets requests in flight end.
    ///
    /// # Errors
    /// When the subscription cannot be made or ends by itself.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), BusError> {
        let client = self.bus.client().clone();
        let mut requests = SelectAll::new();
        for subject in self.handlers.keys() {
            let subscription = client
                .queue_subscribe(subject.clone(), self.service.to_owned())
                .await
                .map_err(BusError::nats("subscribing to requests"))?;
            requests.push(subscription);
        }
        let in_flight = InFlight::new(self.bus.clone());
        loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => break,
                message = requests.next() => message.ok_or(BusError::Disconnected)?,
            };
            in_flight.take(message, &self.handlers);
        }
        for subscription in requests.iter_mut() {
            // Others of the queue group get what would have come here; what has come is
            // still answered. A connection that is gone has left the group anyway.
            let _ = subscription.drain().await;
        }
        let drained = async {
            while let Some(message) = requests.next().await {
                in_flight.take(message, &self.handlers);
            }
            in_flight.ended().await;
        };
        if tokio::time::timeout(DRAIN_DEADLINE, drained).await.is_err() {
            tracing::warn!(
                requests = in_flight.tracker.len(),
                "requests in flight did not end in time and are given up"
            );
            in_flight.give_up.cancel();
            in_flight.ended().await;
        }
        Ok(())
    }
}

/// The requests that are being worked on.
struct InFlight {
    bus: Bus,
    slots: Arc<Semaphore>,
    tracker: TaskTracker,
    give_up: CancellationToken,
}

impl InFlight {
    fn new(bus: Bus) -> Self {
        Self {
            bus,
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            tracker: TaskTracker::new(),
            give_up: CancellationToken::new(),
        }
    }

    fn take(&self, message: Message, handlers: &HashMap<String, Handler>) {
        let Some(handler) = handlers.get(message.subject.as_str()).cloned() else {
            return;
        };
        let bus = self.bus.clone();
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            metrics::counter!("agentbox_rpc_refused_total").increment(1);
            let busy = Error::new(
                ErrorCode::Unavailable,
                "too many requests at once; try again",
            );
            self.tracker
                .spawn(async move { reply(&bus, &message, Err(busy)).await });
            return;
        };
        let give_up = self.give_up.clone();
        self.tracker.spawn(async move {
            give_up
                .run_until_cancelled(answer(&bus, message, handler))
                .await;
            drop(slot);
        });
    }

    async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

async fn answer(bus: &Bus, message: Message, handler: Handler) {
    if is_expired(&message) {
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
    let begun = std::time::Instant::now();
    let work = AssertUnwindSafe(handler(message.payload.clone())).catch_unwind();
    let outcome = match tokio::time::timeout(HANDLER_LIMIT, work.instrument(span.clone())).await {
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
    let word = match &outcome {
        Ok(_) => "ok",
        Err(error) => error.code.word(),
    };
    if outcome
        .as_ref()
        .is_err_and(|error| error.code.status() >= 500)
    {
        span.record("otel.status_code", "ERROR");
    }
    metrics::histogram!("agentbox_rpc_duration_seconds", "method" => destination, "outcome" => word)
        .record(begun.elapsed().as_secs_f64());
    reply(bus, &message, outcome).instrument(span).await;
}

async fn reply(bus: &Bus, message: &Message, outcome: Result<Bytes, Error>) {
    let Some(inbox) = message.reply.clone() else {
        return;
    };
    let mut headers = HeaderMap::new();
    let body = match outcome {
        Ok(body) => body,
        Err(error) => {
            headers.insert(subjects::HEADER_ERROR, error.code.word());
            serde_json::to_vec(&error)
                .map(Bytes::from)
                .unwrap_or_default()
        }
    };
    if let Err(error) = bus
        .client()
        .publish_with_headers(inbox, headers, body)
        .await
    {
        tracing::warn!(%error, "a reply could not be sent");
    }
}
