//! A request and its reply on `abx.v1.rpc.…`.
//!
//! * I1. The caller's deadline travels with the request; a server does not begin what
//!   nobody waits for.
//! * I2. A server works on a bounded number of requests at once and refuses the rest.
//! * I3. A handler that panics is an error to its caller, not the end of the server.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::rpc::Rpc;
use agentbox_contracts::subjects;
use async_nats::client::RequestErrorKind;
use async_nats::{HeaderMap, Message, Request};
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

use crate::connection::Bus;
use crate::error::BusError;
use crate::trace;

/// Requests that one server works on at once.
const MAX_IN_FLIGHT: usize = 256;
/// NATS' own limit on a message, less room for headers.
const MAX_MESSAGE: usize = 1000 * 1024;
/// How long requests in flight may take to end when the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

type Handler = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, Error>> + Send + Sync>;

pub(crate) fn now_unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// A message's body; refused when it is more than one message carries.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    let body = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "a message cannot be written");
        Error::internal()
    })?;
    if body.len() > MAX_MESSAGE {
        return Err(Error::new(
            ErrorCode::PayloadTooLarge,
            format!(
                "{} bytes are more than one message carries ({MAX_MESSAGE})",
                body.len()
            ),
        ));
    }
    Ok(body.into())
}

impl Bus {
    /// Asks a service and waits for its reply, for at most `deadline`.
    ///
    /// # Errors
    /// What the service answered; [`ErrorCode::Unavailable`] at once when no replica
    /// listens; [`ErrorCode::Timeout`] when none answers in time.
    pub async fn call<R: Rpc>(
        &self,
        request: &R::Request,
        deadline: Duration,
    ) -> Result<R::Reply, Error> {
        self.call_on(subjects::rpc(R::SERVICE, R::METHOD), request, deadline)
            .await
    }

    /// [`Self::call`] on a subject of one cluster's exec-proxies.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_on<Q: Serialize, P: DeserializeOwned>(
        &self,
        subject: String,
        request: &Q,
        deadline: Duration,
    ) -> Result<P, Error> {
        let destination = destination(&subject);
        let span = tracing::info_span!(
            "request",
            otel.name = format!("request {destination}"),
            otel.kind = "client",
            otel.status_code = tracing::field::Empty,
            messaging.system = "nats",
            messaging.destination.template = destination,
        );
        let outcome = self
            .request(&span, subject, request, deadline)
            .instrument(span.clone())
            .await;
        if outcome
            .as_ref()
            .is_err_and(|error| error.code.status() >= 500)
        {
            span.record("otel.status_code", "ERROR");
        }
        outcome
    }

    async fn request<Q: Serialize, P: DeserializeOwned>(
        &self,
        span: &tracing::Span,
        subject: String,
        request: &Q,
        deadline: Duration,
    ) -> Result<P, Error> {
        if !self.is_connected() {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "the message bus is not connected",
            ));
        }
        let mut headers = HeaderMap::new();
        let until =
            now_unix_ms().saturating_add(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX));
        headers.insert(subjects::HEADER_DEADLINE, until.to_string());
        trace::inject(span, &mut headers);
        let request = Request::new()
            .payload(encode(request)?)
            .headers(headers)
            .timeout(Some(deadline));
        let destination = destination(&subject);
        let reply =
            self.client()
                .send_request(subject, request)
                .await
                .map_err(|error| match error.kind() {
                    RequestErrorKind::NoResponders => Error::new(
                        ErrorCode::Unavailable,
                        format!("no replica answers {destination}; try again"),
                    ),
                    RequestErrorKind::TimedOut => Error::new(
                        ErrorCode::Timeout,
                        format!(
                            "{destination} did not answer within {} ms",
                            deadline.as_millis()
                        ),
                    ),
                    _ => {
                        tracing::warn!(%error, destination, "a request could not be sent");
                        Error::new(
                            ErrorCode::Unavailable,
                            "the message bus cannot be reached; try again",
                        )
                    }
                })?;
        let failed = reply
            .headers
            .as_ref()
            .is_some_and(|headers| headers.get(subjects::HEADER_ERROR).is_some());
        let malformed = |error: serde_json::Error| {
            tracing::error!(%error, destination, "a reply cannot be read");
            Error::internal()
        };
        if failed {
            Err(serde_json::from_slice(&reply.payload).map_err(malformed)?)
        } else {
            serde_json::from_slice(&reply.payload).map_err(malformed)
        }
    }

    /// A server of requests; add methods, then [`Server::run`] it.
    #[must_use]
    pub fn serve(&self, service: &'static str) -> Server {
        Server {
            bus: self.clone(),
            service,
            handlers: HashMap::new(),
        }
    }
}

/// A subject without what varies: fit for a label.
fn destination(subject: &str) -> String {
    match subjects::Subject::parse(subject) {
        Some(subjects::Subject::Rpc { service, method }) => format!("{service}.{method}"),
        Some(subjects::Subject::ExecRpc { method, .. }) => format!("exec.{method}"),
        _ => "other".to_owned(),
    }
}

/// Answers requests; replicas share them through a queue group.
pub struct Server {
    bus: Bus,
    service: &'static str,
    handlers: HashMap<String, Handler>,
}

impl Server {
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
        let tracker = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => break,
                message = requests.next() => message.ok_or(BusError::Disconnected)?,
            };
            let Some(handler) = self.handlers.get(message.subject.as_str()).cloned() else {
                continue;
            };
            let bus = self.bus.clone();
            match slots.clone().try_acquire_owned() {
                Ok(slot) => {
                    tracker.spawn(async move {
                        answer(&bus, message, handler).await;
                        drop(slot);
                    });
                }
                Err(_) => {
                    metrics::counter!("agentbox_rpc_refused_total").increment(1);
                    let busy = Error::new(
                        ErrorCode::Unavailable,
                        "too many requests at once; try again",
                    );
                    tracker.spawn(async move { reply(&bus, &message, Err(busy)).await });
                }
            }
        }
        for subscription in requests.iter_mut() {
            // Others of the queue group get what would have come here.
            let _ = subscription.unsubscribe().await;
        }
        tracker.close();
        if tokio::time::timeout(DRAIN_DEADLINE, tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                requests = tracker.len(),
                "requests in flight did not end in time"
            );
        }
        Ok(())
    }
}

fn is_expired(message: &Message) -> bool {
    message
        .headers
        .as_ref()
        .and_then(|headers| headers.get(subjects::HEADER_DEADLINE))
        .and_then(|deadline| deadline.as_str().parse::<u64>().ok())
        .is_some_and(|deadline| deadline < now_unix_ms())
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
    let outcome = work.instrument(span.clone()).await.unwrap_or_else(|_| {
        tracing::error!(parent: &span, destination, "a handler panicked");
        Err(Error::internal())
    });
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
