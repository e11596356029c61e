//! Commands on a JetStream work queue: carried out at least once by one replica or
//! another, or kept as a dead letter.
//!
//! * I1. A command is acknowledged after its handler succeeded, never before.
//! * I2. While a handler runs, progress is acknowledged, so that nobody else starts it.
//! * I3. What failed too often goes to the dead letters first and is removed then.
//! * I4. A command past its `expires_at` is removed without being carried out.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::subjects::{self, COMMANDS_STREAM};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use futures::StreamExt;
use opentelemetry::trace::TraceContextExt;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::connection::Bus;
use crate::error::BusError;
use crate::rpc::now_unix_ms;
use crate::trace;

/// How long handlers in flight may take to end when the service stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// After the pull was broken.
const PULL_RETRY: Duration = Duration::from_millis(250);

/// One delivery of a command.
#[derive(Clone, Debug)]
pub struct Command {
    pub subject: String,
    pub body: Bytes,
    /// 1 at first.
    pub attempt: u32,
}

/// Not done: try again after so long.
#[derive(Clone, Debug)]
pub struct Retry {
    pub after: Duration,
    pub reason: String,
}

pub struct WorkQueue {
    bus: Bus,
    consumer: PullConsumer,
    ack_wait: Duration,
    max_deliver: i64,
    max_in_flight: usize,
}

impl Bus {
    /// Queues a command. The same `message_id` again, within two minutes, is no second one.
    ///
    /// # Errors
    /// When JetStream has not acknowledged it.
    pub async fn send_command<T: Serialize>(
        &self,
        subject: String,
        body: &T,
        message_id: &str,
        expires_in: Duration,
    ) -> Result<(), BusError> {
        let body = serde_json::to_vec(body).map_err(|e| BusError::Malformed(e.to_string()))?;
        let expires_at =
            now_unix_ms().saturating_add(u64::try_from(expires_in.as_millis()).unwrap_or(u64::MAX));
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id);
        headers.insert(subjects::HEADER_EXPIRES_AT, expires_at.to_string());
        trace::inject(&Span::current(), &mut headers);
        self.jetstream()
            .publish_with_headers(subject, headers, body.into())
            .await
            .map_err(BusError::nats("sending a command"))?
            .await
            .map(|_| ())
            .map_err(BusError::nats("sending a command"))
    }

    /// The durable consumer `consumer` of the commands that match `filter`.
    ///
    /// # Errors
    /// When JetStream refuses or does not answer.
    pub async fn work_queue(
        &self,
        consumer: &str,
        filter: String,
        ack_wait: Duration,
        max_deliver: i64,
        max_in_flight: usize,
    ) -> Result<WorkQueue, BusError> {
        let stream = self
            .jetstream()
            .get_stream_no_info(COMMANDS_STREAM)
            .await
            .map_err(BusError::nats("opening the work queue"))?;
        let consumer = stream
            .create_consumer(pull::Config {
                durable_name: Some(consumer.to_owned()),
                filter_subject: filter,
                ack_policy: AckPolicy::Explicit,
                ack_wait,
                // One more than the handler is given: the last is the dead letter's.
                max_deliver: max_deliver + 1,
                max_ack_pending: 10_000,
                ..pull::Config::default()
            })
            .await
            .map_err(BusError::nats("opening the work queue"))?;
        Ok(WorkQueue {
            bus: self.clone(),
            consumer,
            ack_wait,
            max_deliver,
            max_in_flight,
        })
    }
}

impl WorkQueue {
    /// Carries out commands until `shutdown`, several at once.
    ///
    /// # Errors
    /// None at present; a broken pull is begun again.
    pub async fn run<F, Fut>(self, handler: F, shutdown: CancellationToken) -> Result<(), BusError>
    where
        F: Fn(Command) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Retry>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let queue = Arc::new(self);
        let tracker = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(queue.max_in_flight));
        'pull: while !shutdown.is_cancelled() {
            let mut messages = match queue.messages().await {
                Ok(messages) => messages,
                Err(error) => {
                    tracing::warn!(%error, "commands cannot be pulled; trying again");
                    tokio::select! {
                        () = shutdown.cancelled() => break 'pull,
                        () = tokio::time::sleep(PULL_RETRY) => continue 'pull,
                    }
                }
            };
            loop {
                let slot = tokio::select! {
                    () = shutdown.cancelled() => break 'pull,
                    slot = slots.clone().acquire_owned() => match slot {
                        Ok(slot) => slot,
                        Err(_) => break 'pull,
                    },
                };
                let message = tokio::select! {
                    () = shutdown.cancelled() => break 'pull,
                    message = messages.next() => message,
                };
                match message {
                    Some(Ok(message)) => {
                        let (queue, handler) = (queue.clone(), handler.clone());
                        tracker.spawn(async move {
                            queue.carry_out(message, &*handler).await;
                            drop(slot);
                        });
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the pull of commands broke; it is begun again");
                        tokio::select! {
                            () = shutdown.cancelled() => break 'pull,
                            () = tokio::time::sleep(PULL_RETRY) => continue 'pull,
                        }
                    }
                    None => continue 'pull,
                }
            }
        }
        tracker.close();
        if tokio::time::timeout(DRAIN_DEADLINE, tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                commands = tracker.len(),
                "commands in flight did not end; another replica takes them"
            );
        }
        Ok(())
    }

    async fn messages(&self) -> Result<pull::Stream, BusError> {
        self.consumer
            .stream()
            .max_messages_per_batch(self.max_in_flight)
            .heartbeat(Duration::from_secs(2))
            .expires(Duration::from_secs(10))
            .messages()
            .await
            .map_err(BusError::nats("pulling commands"))
    }

    async fn carry_out<F, Fut>(&self, message: Message, handler: &F)
    where
        F: Fn(Command) -> Fut,
        Fut: Future<Output = Result<(), Retry>>,
    {
        let attempt = message.info().map_or(1, |info| info.delivered);
        if expires_at(&message).is_some_and(|at| at < now_unix_ms()) {
            metrics::counter!("agentbox_commands_expired_total").increment(1);
            acknowledge(&message, AckKind::Term).await;
            return;
        }
        if attempt > self.max_deliver {
            self.bury(&message, "it was tried too often").await;
            return;
        }
        let span = command_span(&message);
        let command = Command {
            subject: message.subject.to_string(),
            body: message.payload.clone(),
            attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
        };
        let work = handler(command).instrument(span.clone());
        tokio::pin!(work);
        let mut progress = tokio::time::interval(self.ack_wait / 3);
        progress.tick().await;
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                _ = progress.tick() => acknowledge(&message, AckKind::Progress).await,
            }
        };
        match outcome {
            Ok(()) => acknowledge(&message, AckKind::Ack).await,
            Err(retry) if attempt >= self.max_deliver => {
                self.bury(&message, &retry.reason).instrument(span).await;
            }
            Err(retry) => {
                tracing::info!(parent: &span, attempt, reason = retry.reason, "a command is tried again");
                acknowledge(&message, AckKind::Nak(Some(retry.after))).await;
            }
        }
    }

    /// Into the dead letters, then out of the queue.
    async fn bury(&self, message: &Message, reason: &str) {
        let mut headers = without_message_id(message.headers.as_ref());
        headers.insert(subjects::HEADER_REASON, reason);
        let published = async {
            self.bus
                .jetstream()
                .publish_with_headers(
                    subjects::dead_letter(message.subject.as_str()),
                    headers,
                    message.payload.clone(),
                )
                .await
                .map_err(BusError::nats("writing a dead letter"))?
                .await
                .map_err(BusError::nats("writing a dead letter"))
        }
        .await;
        match published {
            Ok(_) => {
                metrics::counter!("agentbox_dead_letters_total").increment(1);
                tracing::error!(subject = %message.subject, reason, "a command became a dead letter");
                acknowledge(message, AckKind::Term).await;
            }
            // It is delivered again and buried then.
            Err(error) => tracing::warn!(%error, "a dead letter could not be written"),
        }
    }
}

/// A dead letter is a new message: the old id would make it a duplicate.
fn without_message_id(headers: Option<&HeaderMap>) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        if name.as_ref() as &str == "Nats-Msg-Id" {
            continue;
        }
        for value in values {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

fn expires_at(message: &Message) -> Option<u64> {
    message
        .headers
        .as_ref()?
        .get(subjects::HEADER_EXPIRES_AT)?
        .as_str()
        .parse()
        .ok()
}

/// A trace of its own, linked to the one that sent the command: the work may run long
/// after the request has been answered.
fn command_span(message: &Message) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "command",
        otel.name = "process env command",
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.type = "process",
        messaging.destination.template = "cmd.env",
    );
    let sender = trace::extract(message.headers.as_ref());
    let sender = sender.span().span_context().clone();
    if sender.is_valid() {
        span.add_link(sender);
    }
    span
}

async fn acknowledge(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        // It is delivered again.
        tracing::debug!(%error, "an acknowledgement could not be sent");
    }
}
