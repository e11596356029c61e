//! Environment events for one service, each delivered until a replica has processed it.
//!
//! * I1. The replicas share one durable consumer, which has the name of the service: it is the only one
//!   that the service may use.
//! * I2. A message whose subject is not that of its event was not published by the scheduler: a
//!   consumer can deliver to any subject. It is logged and dropped.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::EnvironmentEvent;
use agentbox_contracts::subjects::{self, EVENTS_STREAM};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{AckKind, Message};
use futures::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::error::BusError;
use crate::lag;

const READING: &str = "reading events";
/// An event that is not acknowledged after this time is delivered again.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Events that may be delivered and not acknowledged, over all replicas.
const MAX_ACK_PENDING: i64 = 1_000;
/// How much longer a pull may take. After that, the message about its end was lost. An event that arrives
/// later is delivered again only after [`ACK_WAIT`], after events that follow it.
const PULL_GRACE: Duration = Duration::from_secs(5);

/// The events that the service has not processed.
pub struct EventQueue {
    client: Client,
    consumer: Option<PullConsumer>,
}

/// A delivered event, which is delivered again until it is acknowledged.
pub struct QueuedEvent {
    /// Equal in each copy of the event.
    pub id: String,
    /// The number in the stream.
    pub sequence: u64,
    pub event: EnvironmentEvent,
    message: Message,
}

impl EventQueue {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            consumer: None,
        }
    }

    /// Waits until there is an event, at most for `wait`, and returns it with those that follow and are
    /// there already, at most `max`, in their order.
    ///
    /// # Errors
    /// When JetStream cannot be reached. The events are then delivered again.
    pub async fn pull(&mut self, max: usize, wait: Duration) -> Result<Vec<QueuedEvent>, BusError> {
        let pulled = self.try_pull(max, wait).await;
        if pulled.is_err() {
            // The consumer itself may be lost.
            self.consumer = None;
        }
        pulled
    }

    async fn try_pull(&mut self, max: usize, wait: Duration) -> Result<Vec<QueuedEvent>, BusError> {
        let mut reconnected = self.client.reconnected();
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => open(&self.client).await?,
        };
        let mut queued = Vec::new();
        let first = consumer
            .batch()
            .max_messages(1)
            .expires(wait)
            .messages()
            .await
            .map_err(BusError::nats(READING))?;
        let mut is_whole = receive(first, wait, &mut reconnected, &mut queued).await?;
        if is_whole && !queued.is_empty() && max > 1 {
            let present = consumer
                .fetch()
                .max_messages(max - 1)
                .messages()
                .await
                .map_err(BusError::nats(READING))?;
            is_whole = receive(present, Duration::ZERO, &mut reconnected, &mut queued).await?;
        }
        if is_whole {
            self.consumer = Some(consumer);
        }
        Ok(queued)
    }
}

/// Adds the events of a pull to `queued`. False: the server has lost the pull, and may have lost the
/// consumer.
async fn receive(
    mut messages: pull::Batch,
    wait: Duration,
    reconnected: &mut watch::Receiver<u64>,
    queued: &mut Vec<QueuedEvent>,
) -> Result<bool, BusError> {
    let over = tokio::time::sleep(wait + PULL_GRACE);
    tokio::pin!(over);
    loop {
        let message = tokio::select! {
            message = messages.next() => message,
            _ = reconnected.changed() => return Ok(false),
            () = &mut over => return Ok(true),
        };
        let Some(message) = message else {
            return Ok(true);
        };
        let message = message.map_err(BusError::nats(READING))?;
        match decode(&message) {
            Ok((id, sequence, event)) => queued.push(QueuedEvent {
                id,
                sequence,
                event,
                message,
            }),
            Err(reason) => {
                tracing::error!(subject = %message.subject, reason, "event dropped");
                acknowledge(&message, AckKind::Term).await;
            }
        }
    }
}

impl QueuedEvent {
    /// Ends the deliveries of the event; to be called when it is processed.
    pub async fn acknowledge(&self) {
        acknowledge(&self.message, AckKind::Ack).await;
    }
}

async fn acknowledge(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::debug!(error = %ErrorChain(&*error), "event not acknowledged; it is delivered again");
    }
}

/// The id, the number and the event of a message, or why it has none.
fn decode(message: &Message) -> Result<(String, u64, EnvironmentEvent), &'static str> {
    let event: EnvironmentEvent =
        serde_json::from_slice(&message.payload).map_err(|_| "it is not an event")?;
    let subject = subjects::event(&event.owner, &event.environment_id, event.kind);
    if message.subject.as_str() != subject {
        return Err("it has another subject than its event");
    }
    let info = message
        .info()
        .map_err(|_| "it was not delivered by JetStream")?;
    let sequence = info.stream_sequence;
    let id = message
        .headers
        .as_ref()
        .and_then(|headers| headers.get(async_nats::header::NATS_MESSAGE_ID))
        .map_or_else(|| format!("sequence-{sequence}"), ToString::to_string);
    Ok((id, sequence, event))
}

/// Measures how many events the service has not processed, until `shutdown`.
pub(crate) async fn measure_lag(client: Client, shutdown: CancellationToken) {
    let consumer = client.service().to_owned();
    lag::measure(client, EVENTS_STREAM, consumer, shutdown).await;
}

async fn open(client: &Client) -> Result<PullConsumer, BusError> {
    client
        .jetstream()
        .get_stream_no_info(EVENTS_STREAM)
        .await
        .map_err(BusError::nats(READING))?
        .create_consumer(pull::Config {
            durable_name: Some(client.service().to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: MAX_ACK_PENDING,
            ..pull::Config::default()
        })
        .await
        .map_err(BusError::nats(READING))
}
