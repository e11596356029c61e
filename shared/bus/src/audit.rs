//! Audit entries on their way to auth, and the published ends of the trail's chain.
//!
//! * I1. An entry that JetStream has acknowledged is on its disk, and stays there until auth has
//!   stored it in the trail. A full stream refuses entries; it drops none.
//! * I2. A message whose subject is not that of its entry's action is refused: the subject is what
//!   NATS allows each service to publish. So is an entry that Postgres would not store, or that is
//!   too large: it would be delivered for ever, and no entry after it would be chained.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::audit::{AuditEntry, AuditHead};
use agentbox_contracts::subjects::{self, AUDIT_HEAD, AUDIT_HEADS_STREAM, AUDIT_STREAM};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{AckKind, Message};
use futures::StreamExt;
use serde::Serialize;

use crate::client::Client;
use crate::error::BusError;
use crate::replies::Replies;

const RECORDING: &str = "recording an audit entry";
const READING: &str = "reading audit entries";
const READING_HEADS: &str = "reading the heads of the audit trail";
const CONSUMER: &str = "auth-chain";
/// The longest message, in bytes. An entry with the longest recorded command is shorter, also if
/// JSON escapes every character of it.
const MAX_ENTRY_BYTES: usize = 64 * 1024;
/// An entry that auth has not stored after this time is delivered again.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// How much longer a pull may take. After that, the message about its end was lost.
const PULL_GRACE: Duration = Duration::from_secs(1);
/// How long the next head may take to arrive.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// Stores an entry. JetStream drops a second one with the same id.
pub(crate) async fn publish(
    replies: &Replies,
    entry: &AuditEntry,
    deadline: Duration,
) -> Result<(), BusError> {
    let subject = subjects::audit(entry.action);
    store(replies, subject, entry.id.as_str(), entry, deadline).await
}

/// Stores the present end of the chain.
pub(crate) async fn publish_head(
    replies: &Replies,
    head: &AuditHead,
    deadline: Duration,
) -> Result<(), BusError> {
    let message_id = format!("audit-head-{}-{}", head.sequence, head.at.timestamp());
    store(replies, AUDIT_HEAD.to_owned(), &message_id, head, deadline).await
}

async fn store<T: Serialize>(
    replies: &Replies,
    subject: String,
    message_id: &str,
    body: &T,
    deadline: Duration,
) -> Result<(), BusError> {
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id);
    let body = serde_json::to_vec(body)?;
    let reply = replies
        .request(subject, headers, body.into(), deadline)
        .await
        .map_err(BusError::nats(RECORDING))?;
    let answer: Response<PublishAck> = serde_json::from_slice(&reply.payload)?;
    match answer {
        Response::Ok(_) => Ok(()),
        Response::Err { error } => Err(BusError::nats(RECORDING)(error)),
    }
}

/// The entries that are not in the trail yet. For the one replica of auth that chains them.
pub struct AuditQueue {
    client: Client,
    consumer: Option<PullConsumer>,
}

/// A delivered entry, which is delivered again until it is acknowledged.
pub struct QueuedEntry {
    pub entry: AuditEntry,
    message: Message,
}

impl AuditQueue {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            consumer: None,
        }
    }

    /// Waits for `wait`, or until `max` entries have arrived, and returns them.
    ///
    /// # Errors
    /// When JetStream cannot be reached. The entries are then delivered again.
    pub async fn pull(&mut self, max: usize, wait: Duration) -> Result<Vec<QueuedEntry>, BusError> {
        let pulled = self.try_pull(max, wait).await;
        if pulled.is_err() {
            // The consumer itself may be lost.
            self.consumer = None;
        }
        pulled
    }

    async fn try_pull(&mut self, max: usize, wait: Duration) -> Result<Vec<QueuedEntry>, BusError> {
        let mut reconnected = self.client.reconnected();
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => open(&self.client).await?,
        };
        let mut messages = consumer
            .batch()
            .max_messages(max)
            .expires(wait)
            .messages()
            .await
            .map_err(BusError::nats(READING))?;
        self.consumer = Some(consumer);
        let over = tokio::time::sleep(wait + PULL_GRACE);
        tokio::pin!(over);
        let mut queued = Vec::new();
        while queued.len() < max {
            let message = tokio::select! {
                message = messages.next() => message,
                // The server has lost the pull.
                _ = reconnected.changed() => break,
                () = &mut over => break,
            };
            let Some(message) = message else { break };
            let message = message.map_err(BusError::nats(READING))?;
            match decode(&message) {
                Some(entry) => queued.push(QueuedEntry { entry, message }),
                None => acknowledge(&message, AckKind::Term).await,
            }
        }
        Ok(queued)
    }
}

impl QueuedEntry {
    /// Removes the entry from the stream; to be called when the trail has it.
    pub async fn acknowledge(&self) {
        acknowledge(&self.message, AckKind::Ack).await;
    }
}

async fn acknowledge(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::debug!(error = %ErrorChain(&*error), "audit entry not acknowledged; it is delivered again");
    }
}

/// `None`: the message is not an entry of its subject's action (I2).
fn decode(message: &Message) -> Option<AuditEntry> {
    if message.payload.len() > MAX_ENTRY_BYTES {
        let bytes = message.payload.len();
        tracing::error!(subject = %message.subject, bytes, "audit entry refused: it is too large");
        return None;
    }
    let entry: AuditEntry = serde_json::from_slice(&message.payload)
        .inspect_err(|error| tracing::error!(error = %ErrorChain(error), "audit entry not decoded"))
        .ok()?;
    if message.subject.as_str() != subjects::audit(entry.action) {
        tracing::error!(subject = %message.subject, action = %entry.action, "audit entry refused: it has another action than its subject");
        return None;
    }
    if !entry.is_storable() {
        tracing::error!(id = %entry.id, "audit entry refused: a field breaks its rule");
        return None;
    }
    Some(entry)
}

async fn open(client: &Client) -> Result<PullConsumer, BusError> {
    client
        .jetstream()
        .get_stream_no_info(AUDIT_STREAM)
        .await
        .map_err(BusError::nats(READING))?
        .create_consumer(pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: 10_000,
            ..pull::Config::default()
        })
        .await
        .map_err(BusError::nats(READING))
}

/// The heads that were published and are still kept, oldest first.
pub(crate) async fn heads(client: &Client) -> Result<Vec<AuditHead>, BusError> {
    let stream = client
        .jetstream()
        .get_stream(AUDIT_HEADS_STREAM)
        .await
        .map_err(BusError::nats(READING_HEADS))?;
    if stream.cached_info().state.messages == 0 {
        return Ok(Vec::new());
    }
    let mut messages = stream
        .create_consumer(OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            ..OrderedConfig::default()
        })
        .await
        .map_err(BusError::nats(READING_HEADS))?
        .messages()
        .await
        .map_err(BusError::nats(READING_HEADS))?;
    let mut heads = Vec::new();
    loop {
        let message = tokio::time::timeout(HEAD_DEADLINE, messages.next())
            .await
            .map_err(|_| BusError::Deadline(HEAD_DEADLINE))?
            .ok_or(BusError::Disconnected)?
            .map_err(BusError::nats(READING_HEADS))?;
        heads.push(serde_json::from_slice(&message.payload)?);
        let info = message.info().map_err(BusError::nats(READING_HEADS))?;
        if info.pending == 0 {
            return Ok(heads);
        }
    }
}
