//! Reads environment events from NATS with the credential of an event reader (`docs/events.md`).
//!
//! * I1. The position is that of the durable consumer, which has the name of the user: it survives the
//!   program and NATS. Programs with the same user share the events.
//! * I2. An event is delivered again until it is acknowledged. [`Received::id`] is the same in each copy.
//! * I3. A message whose subject is not that of its event was not published by AgentBox. It is dropped.
//! * I4. Every wait has a deadline. After a lost connection the next call continues.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use agentbox_contracts::environment::EnvironmentEvent;
use agentbox_contracts::permissions::inbox_prefix;
use agentbox_contracts::subjects::{self, ALL_EVENTS, EVENTS_STREAM};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{self, AckKind, Context, ErrorCode, Message};
use async_nats::{ConnectOptions, datetime};
use chrono::{DateTime, Utc};
use futures::StreamExt as _;

/// The most events that are fetched at once. They wait in this process for their turn.
const BATCH: usize = 64;
/// An event that is not acknowledged after this time is delivered again.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Events that may be delivered and not acknowledged.
const MAX_ACK_PENDING: i64 = 256;
/// The deadline of a request to NATS.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How much longer a pull may take. After that, the message about its end was lost. An event that arrives
/// later is delivered again only after [`ACK_WAIT`], after events that follow it.
const PULL_GRACE: Duration = Duration::from_secs(5);

type Source = Box<dyn std::error::Error + Send + Sync>;

/// NATS refused an operation, or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed")]
pub struct SubscribeError {
    operation: &'static str,
    #[source]
    source: Source,
}

fn failed<E: Into<Source>>(operation: &'static str) -> impl FnOnce(E) -> SubscribeError {
    move |error| SubscribeError {
        operation,
        source: error.into(),
    }
}

/// How a program logs in to NATS.
#[derive(Clone, Debug)]
pub struct Login {
    /// With the scheme `tls` the connection is encrypted.
    pub url: String,
    pub user: String,
    pub password: String,
    /// A PEM file with the authorities of the server's certificate. `None`: those of the system.
    pub tls_ca: Option<PathBuf>,
}

/// Where a subscription begins that has no position yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The oldest event that is kept.
    Oldest,
    /// The next event that happens.
    New,
    /// The first event that was stored at or after this time.
    At(DateTime<Utc>),
}

impl Start {
    fn deliver_policy(self) -> Result<DeliverPolicy, SubscribeError> {
        Ok(match self {
            Self::Oldest => DeliverPolicy::All,
            Self::New => DeliverPolicy::New,
            Self::At(time) => {
                let nanoseconds = time.timestamp_nanos_opt().unwrap_or_default();
                let start_time = datetime::from_nanos(nanoseconds.into())
                    .map_err(failed("reading the time of the start"))?;
                DeliverPolicy::ByStartTime { start_time }
            }
        })
    }
}

/// An event, which is delivered again until it is acknowledged.
pub struct Received {
    /// Equal in each copy of the event.
    pub id: String,
    /// The event's `id` in `GET /events`.
    pub sequence: u64,
    pub event: EnvironmentEvent,
    message: Message,
}

impl Received {
    /// Ends the deliveries of the event; to be called when it is processed.
    ///
    /// # Errors
    /// When NATS has not confirmed it in time. The event is then delivered again.
    pub async fn acknowledge(&self) -> Result<(), SubscribeError> {
        let operation = "acknowledging an event";
        tokio::time::timeout(REQUEST_DEADLINE, self.message.double_ack())
            .await
            .map_err(failed(operation))?
            .map_err(failed(operation))
    }
}

/// A durable subscription to environment events.
pub struct Subscription {
    jetstream: Context,
    user: String,
    start: Start,
    consumer: Option<PullConsumer>,
    fetched: VecDeque<Received>,
}

impl Subscription {
    /// Logs in, and continues at the position of the user's consumer. Without one it begins at `start`.
    ///
    /// # Errors
    /// When NATS cannot be reached, or refuses the login or the consumer.
    pub async fn open(login: &Login, start: Start) -> Result<Self, SubscribeError> {
        let user = login.user.clone();
        let mut options = ConnectOptions::with_user_and_password(user, login.password.clone())
            .name(format!("agentbox-events-{}", login.user))
            .custom_inbox_prefix(inbox_prefix(&login.user))
            .connection_timeout(REQUEST_DEADLINE);
        if let Some(path) = &login.tls_ca {
            options = options
                .require_tls(true)
                .add_root_certificates(path.clone());
        }
        let client = options.connect(&login.url).await;
        let mut jetstream = jetstream::new(client.map_err(failed("connecting to NATS"))?);
        jetstream.set_timeout(REQUEST_DEADLINE);
        let mut subscription = Self {
            jetstream,
            user: login.user.clone(),
            start,
            consumer: None,
            fetched: VecDeque::new(),
        };
        let consumer = subscription.open_consumer().await?;
        subscription.consumer = Some(consumer);
        Ok(subscription)
    }

    /// Gives up the position, and begins again at `start`.
    ///
    /// # Errors
    /// When NATS does not answer in time. The position is then unknown, and the call can be repeated.
    pub async fn replay(&mut self, start: Start) -> Result<(), SubscribeError> {
        let operation = "replaying events";
        self.start = start;
        self.fetched.clear();
        self.consumer = None;
        let stream = self.jetstream.get_stream_no_info(EVENTS_STREAM).await;
        let stream = stream.map_err(failed(operation))?;
        if let Err(error) = stream.delete_consumer(&self.user).await {
            let is_missing = matches!(
                error.kind(),
                ConsumerErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND
            );
            if !is_missing {
                return Err(failed(operation)(error));
            }
        }
        self.consumer = Some(self.open_consumer().await?);
        Ok(())
    }

    /// Waits for the next event, for at most `wait`. `None`: there was none.
    ///
    /// # Errors
    /// When NATS does not answer. The next call continues.
    pub async fn next(&mut self, wait: Duration) -> Result<Option<Received>, SubscribeError> {
        if let Some(received) = self.fetched.pop_front() {
            return Ok(Some(received));
        }
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => self.open_consumer().await?,
        };
        self.fetched = fetch(&consumer, wait).await?;
        if !self.fetched.is_empty() {
            self.consumer = Some(consumer);
        }
        // Without an event the consumer itself may be lost, so the next call asks for it.
        Ok(self.fetched.pop_front())
    }

    async fn open_consumer(&self) -> Result<PullConsumer, SubscribeError> {
        let operation = "opening the consumer of events";
        let config = pull::Config {
            durable_name: Some(self.user.clone()),
            filter_subject: ALL_EVENTS.to_owned(),
            deliver_policy: self.start.deliver_policy()?,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: MAX_ACK_PENDING,
            ..pull::Config::default()
        };
        let stream = self.jetstream.get_stream_no_info(EVENTS_STREAM).await;
        stream
            .map_err(failed(operation))?
            .get_or_create_consumer(&self.user, config)
            .await
            .map_err(failed(operation))
    }
}

/// Waits until an event is delivered, and returns those that arrive with it.
async fn fetch(
    consumer: &PullConsumer,
    wait: Duration,
) -> Result<VecDeque<Received>, SubscribeError> {
    let operation = "fetching events";
    let mut fetched = VecDeque::new();
    let first = consumer.batch().max_messages(1).expires(wait);
    let mut messages = first.messages().await.map_err(failed(operation))?;
    match tokio::time::timeout(wait + PULL_GRACE, messages.next()).await {
        Ok(Some(message)) => {
            push_event(&mut fetched, message.map_err(failed(operation))?).await;
        }
        Ok(None) | Err(_) => return Ok(fetched),
    }
    // The others that are there already.
    let rest = consumer.fetch().max_messages(BATCH - 1);
    let Ok(mut messages) = rest.messages().await else {
        return Ok(fetched);
    };
    while let Ok(Some(message)) = tokio::time::timeout(PULL_GRACE, messages.next()).await {
        let Ok(message) = message else { break };
        push_event(&mut fetched, message).await;
    }
    Ok(fetched)
}

/// Adds the event of a message, or drops it (I3).
async fn push_event(fetched: &mut VecDeque<Received>, message: Message) {
    match decode(&message) {
        Some((id, sequence, event)) => fetched.push_back(Received {
            id,
            sequence,
            event,
            message,
        }),
        None => {
            // Best effort: an event that is not dropped is delivered and refused again.
            let _ = message.ack_with(AckKind::Term).await;
        }
    }
}

fn decode(message: &Message) -> Option<(String, u64, EnvironmentEvent)> {
    let event: EnvironmentEvent = serde_json::from_slice(&message.payload).ok()?;
    let subject = subjects::event(&event.owner, &event.environment_id, event.kind);
    if message.subject.as_str() != subject {
        return None;
    }
    let sequence = message.info().ok()?.stream_sequence;
    let id = message
        .headers
        .as_ref()
        .and_then(|headers| headers.get(async_nats::header::NATS_MESSAGE_ID))
        .map_or_else(|| format!("sequence-{sequence}"), ToString::to_string);
    Some((id, sequence, event))
}
