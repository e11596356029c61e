//! Environment events: published once, replayable for as long as they are kept.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use agentbox_contracts::environment::EnvironmentEvent;
use agentbox_contracts::subjects::{self, EVENTS_STREAM};
use async_nats::HeaderMap;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tracing::Span;

use crate::connection::Bus;
use crate::error::BusError;
use crate::trace;

const READING: &str = "reading events";
/// Between two attempts to go on reading.
const RETRY: Duration = Duration::from_millis(250);
/// Who has not been able to go on for so long is told.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// An event and its place in the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Rises with every event; what `Last-Event-ID` carries.
    pub sequence: u64,
    pub event: EnvironmentEvent,
    /// How many more are stored now; 0: caught up.
    pub pending: u64,
}

/// Events in order. Survives reconnects and restarts of NATS; ends only with an error.
pub struct EventStream {
    events: BoxStream<'static, Result<StoredEvent, BusError>>,
}

/// One reading of the stream.
struct Reader {
    bus: Bus,
    filter: String,
    /// What comes next; 0: the oldest kept.
    from_sequence: u64,
    messages: Option<Ordered>,
    reconnected: watch::Receiver<u64>,
    /// Since when nothing could be read.
    broken_since: Option<Instant>,
}

impl Reader {
    /// The next event, or why there can be none.
    async fn next(&mut self) -> Result<StoredEvent, BusError> {
        loop {
            match self.try_next().await {
                Ok(Some(message)) => {
                    self.broken_since = None;
                    return self.take(&message);
                }
                Ok(None) => self.messages = None,
                Err(error) => {
                    self.messages = None;
                    let since = *self.broken_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > GIVE_UP_AFTER {
                        return Err(error);
                    }
                    tracing::info!(%error, "the events are read again from where they broke off");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// `None`: the server has forgotten the reading.
    async fn try_next(&mut self) -> Result<Option<Message>, BusError> {
        let messages = match &mut self.messages {
            Some(messages) => messages,
            None => {
                self.reconnected.mark_unchanged();
                let messages = self
                    .bus
                    .read_events(&self.filter, self.from_sequence)
                    .await?;
                self.messages.insert(messages)
            }
        };
        tokio::select! {
            message = messages.next() => message.transpose().map_err(BusError::nats(READING)),
            _ = self.reconnected.changed() => Ok(None),
        }
    }

    fn take(&mut self, message: &Message) -> Result<StoredEvent, BusError> {
        let info = message.info().map_err(BusError::nats(READING))?;
        self.from_sequence = info.stream_sequence + 1;
        let event = serde_json::from_slice(&message.payload)
            .map_err(|error| BusError::Malformed(error.to_string()))?;
        Ok(StoredEvent {
            sequence: info.stream_sequence,
            event,
            pending: info.pending,
        })
    }
}

impl Bus {
    /// Publishes an event. The same `message_id` again, within two minutes, is no second
    /// event. Returns its sequence.
    ///
    /// # Errors
    /// When JetStream has not acknowledged it.
    pub async fn publish_event(
        &self,
        event: &EnvironmentEvent,
        message_id: &str,
    ) -> Result<u64, BusError> {
        let body = serde_json::to_vec(event).map_err(|e| BusError::Malformed(e.to_string()))?;
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id);
        trace::inject(&Span::current(), &mut headers);
        let subject = subjects::event(&event.environment_id, event.kind);
        let ack = self
            .jetstream()
            .publish_with_headers(subject, headers, body.into())
            .await
            .map_err(BusError::nats("publishing an event"))?
            .await
            .map_err(BusError::nats("publishing an event"))?;
        Ok(ack.sequence)
    }

    /// Events whose subject matches `filter`, from `from_sequence` (0: the oldest kept).
    ///
    /// # Errors
    /// When JetStream cannot be reached.
    pub async fn events(
        &self,
        filter: String,
        from_sequence: u64,
    ) -> Result<EventStream, BusError> {
        let reconnected = self.reconnected();
        let reader = Reader {
            messages: Some(self.read_events(&filter, from_sequence).await?),
            bus: self.clone(),
            filter,
            from_sequence,
            reconnected,
            broken_since: None,
        };
        let events = futures::stream::unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            let next = reader.next().await;
            // One that cannot be read does not keep the others back.
            let goes_on = matches!(next, Ok(_) | Err(BusError::Malformed(_)));
            let reader = goes_on.then_some(reader);
            Some((next, reader))
        });
        Ok(EventStream {
            events: events.boxed(),
        })
    }

    async fn read_events(&self, filter: &str, from_sequence: u64) -> Result<Ordered, BusError> {
        let stream = self
            .jetstream()
            .get_stream_no_info(EVENTS_STREAM)
            .await
            .map_err(BusError::nats(READING))?;
        let deliver_policy = match from_sequence {
            0 => DeliverPolicy::All,
            start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
        };
        stream
            .create_consumer(OrderedConfig {
                filter_subject: filter.to_owned(),
                deliver_policy,
                ..OrderedConfig::default()
            })
            .await
            .map_err(BusError::nats(READING))?
            .messages()
            .await
            .map_err(BusError::nats(READING))
    }

    /// Whether any stored event matches `filter`: whether a replay has anything to wait for.
    ///
    /// # Errors
    /// When JetStream cannot be reached.
    pub async fn has_events(&self, filter: &str) -> Result<bool, BusError> {
        let stream = self
            .jetstream()
            .get_stream_no_info(EVENTS_STREAM)
            .await
            .map_err(BusError::nats(READING))?;
        let mut subjects = stream
            .info_with_subjects(filter)
            .await
            .map_err(BusError::nats(READING))?;
        Ok(subjects.next().await.is_some())
    }
}

impl Stream for EventStream {
    type Item = Result<StoredEvent, BusError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(context)
    }
}
