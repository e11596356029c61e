//! Audit entries on their way to auth, and the published heads of the trail's chain.
//!
//! * I1. An entry that JetStream has acknowledged is on its disk, and stays there until auth has
//!   stored it in the trail. A full stream refuses entries; it drops none.
//! * I2. A malformed message becomes a dead letter: one whose subject is not that of its entry's
//!   action (the subject names the service that NATS allows to publish there), one that Postgres
//!   would not store, and one that is too large.
//! * I3. An entry of a newer version, which this one cannot read, stays in the stream and is
//!   delivered again later: services and auth are upgraded one after the other. Others do not wait
//!   for it.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::audit::{AuditAction, AuditEntry, AuditHead, AuditOutcome};
use agentbox_contracts::ids::AuditId;
use agentbox_contracts::subjects::{self, AUDIT_HEAD, AUDIT_HEADS_STREAM, AUDIT_STREAM};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{AckKind, Message};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::error::BusError;
use crate::replies::Replies;
use crate::{dead_letter, lag, metrics};

const RECORDING: &str = "recording an audit entry";
const READING: &str = "reading audit entries";
const READING_HEADS: &str = "reading the heads of the audit trail";
const CONSUMER: &str = "auth-chain";
/// The longest message, in bytes. An entry with the longest recorded command is shorter, also if
/// JSON escapes every character of it.
const MAX_ENTRY_BYTES: usize = 64 * 1024;
/// An entry that auth has not stored after this time is delivered again.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// An entry that only a newer auth can read is delivered again after this time.
const NEWER_RETRY_DELAY: Duration = Duration::from_secs(30);
/// The wait before the next attempt to write a dead letter.
const DEAD_LETTER_RETRY_DELAY: Duration = Duration::from_secs(5);
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

/// Stores the present head of the chain.
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
            None => open_consumer(&self.client).await?,
        };
        let mut messages = consumer
            .batch()
            .max_messages(max)
            .expires(wait)
            .messages()
            .await
            .map_err(BusError::nats(READING))?;
        self.consumer = Some(consumer);
        let overdue = tokio::time::sleep(wait + PULL_GRACE);
        tokio::pin!(overdue);
        let mut queued = Vec::new();
        let mut newer: u64 = 0;
        while queued.len() < max {
            let message = tokio::select! {
                message = messages.next() => message,
                // The server has lost the pull.
                _ = reconnected.changed() => break,
                () = &mut overdue => break,
            };
            let Some(message) = message else { break };
            let message = message.map_err(BusError::nats(READING))?;
            match decode(message.subject.as_str(), &message.payload) {
                Decoded::Entry(entry) => {
                    let entry = *entry;
                    queued.push(QueuedEntry { entry, message });
                }
                Decoded::Newer => {
                    newer += 1;
                    acknowledge(&message, AckKind::Nak(Some(NEWER_RETRY_DELAY))).await;
                }
                Decoded::Malformed(reason) => {
                    make_dead_letter(&self.client, &message, reason).await
                }
            }
        }
        if newer > 0 {
            metrics::audit_deferred(newer);
            tracing::warn!(
                entries = newer,
                "audit entries of a newer version wait for a newer auth"
            );
        }
        Ok(queued)
    }
}

/// Measures how many entries wait for the trail, until `shutdown`.
pub(crate) async fn measure_lag(client: Client, shutdown: CancellationToken) {
    lag::measure(client, AUDIT_STREAM, CONSUMER.to_owned(), shutdown).await;
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

/// Makes a message a dead letter, and removes it from the stream.
async fn make_dead_letter(client: &Client, message: &Message, reason: &'static str) {
    match dead_letter::store(client, message, reason).await {
        Ok(()) => {
            tracing::error!(subject = %message.subject, reason, "audit entry became a dead letter");
            acknowledge(message, AckKind::Term).await;
        }
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "dead letter not written; retried");
            acknowledge(message, AckKind::Nak(Some(DEAD_LETTER_RETRY_DELAY))).await;
        }
    }
}

/// The content of a message on an audit subject.
#[derive(Debug, PartialEq, Eq)]
enum Decoded {
    Entry(Box<AuditEntry>),
    /// An entry that a newer version can read (I3).
    Newer,
    /// The reason (I2).
    Malformed(&'static str),
}

fn decode(subject: &str, payload: &[u8]) -> Decoded {
    if payload.len() > MAX_ENTRY_BYTES {
        return Decoded::Malformed("it is too large");
    }
    match serde_json::from_slice::<Box<AuditEntry>>(payload) {
        Ok(entry) if subject != subjects::audit(entry.action) => {
            Decoded::Malformed("it has another action than its subject")
        }
        Ok(entry) if !entry.is_storable() => Decoded::Malformed("a field breaks its rule"),
        Ok(entry) => Decoded::Entry(entry),
        Err(_) if is_newer(subject, payload) => Decoded::Newer,
        Err(_) => Decoded::Malformed("it is not an audit entry"),
    }
}

/// Whether it is an entry with an action or an outcome that this version does not know.
fn is_newer(subject: &str, payload: &[u8]) -> bool {
    /// The fields of an entry of every version.
    #[derive(Deserialize)]
    struct Common {
        #[serde(rename = "id")]
        _id: AuditId,
        #[serde(rename = "at")]
        _at: DateTime<Utc>,
        action: String,
        outcome: String,
    }
    let Ok(common) = serde_json::from_slice::<Common>(payload) else {
        return false;
    };
    let action: Option<AuditAction> = common.action.parse().ok();
    let is_of_subject = match action {
        Some(action) => subject == subjects::audit(action),
        // The server has compared the service in the subject with the publisher.
        None => subject.rsplit('.').next() == Some(common.action.as_str()),
    };
    let is_unknown = action.is_none() || common.outcome.parse::<AuditOutcome>().is_err();
    is_of_subject && is_unknown
}

async fn open_consumer(client: &Client) -> Result<PullConsumer, BusError> {
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
            // The size of the stream is the bound. Entries that wait for a newer auth would fill
            // another one, and none after them would be delivered.
            max_ack_pending: -1,
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
        match serde_json::from_slice(&message.payload) {
            Ok(head) => heads.push(head),
            // One malformed message must not prevent every verification.
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "a published head of the audit trail is not readable");
            }
        }
        let info = message.info().map_err(BusError::nats(READING_HEADS))?;
        if info.pending == 0 {
            return Ok(heads);
        }
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::audit::Origin;
    use serde_json::{Value, json};

    use super::*;

    /// An entry of an exec with other values in some fields, on `subject`.
    fn decoded(subject: &str, changes: Value) -> Decoded {
        let entry = AuditEntry::new(
            Origin::default(),
            AuditAction::Exec,
            None,
            AuditOutcome::Accepted,
        );
        let mut json = serde_json::to_value(entry).unwrap();
        for (field, value) in changes.as_object().unwrap() {
            json[field] = value.clone();
        }
        decode(subject, json.to_string().as_bytes())
    }

    #[test]
    fn entry_of_a_newer_version_is_not_malformed() {
        let exec = subjects::audit(AuditAction::Exec);
        let upload = "abx.v1.audit.api-gateway.upload";
        assert!(matches!(decoded(&exec, json!({})), Decoded::Entry(_)));
        for (subject, changes) in [
            (upload, json!({"action": "upload"})),
            (
                upload,
                json!({"action": "upload", "outcome": "partial", "size": 7}),
            ),
            (exec.as_str(), json!({"outcome": "partial"})),
        ] {
            assert_eq!(
                decoded(subject, changes.clone()),
                Decoded::Newer,
                "{changes}"
            );
        }
    }

    #[test]
    fn entry_that_no_version_makes_is_malformed() {
        let exec = subjects::audit(AuditAction::Exec);
        let upload = "abx.v1.audit.api-gateway.upload";
        for (subject, changes) in [
            (exec.as_str(), json!({"action": "login"})),
            (exec.as_str(), json!({"action": "upload"})),
            (exec.as_str(), json!({"user": "no id"})),
            (exec.as_str(), json!({"target": "a b"})),
            (upload, json!({"action": "upload", "id": 7})),
            (upload, json!({"action": "upload", "outcome": null})),
            (upload, json!({})),
            ("abx.v1.audit.scheduler.exec", json!({})),
        ] {
            let decoded = decoded(subject, changes.clone());
            assert!(
                matches!(decoded, Decoded::Malformed(_)),
                "{changes}: {decoded:?}"
            );
        }
        let large = vec![b' '; MAX_ENTRY_BYTES + 1];
        assert!(matches!(decode(&exec, &large), Decoded::Malformed(_)));
        assert!(matches!(decode(&exec, b"7"), Decoded::Malformed(_)));
    }
}
