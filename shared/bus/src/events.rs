//! Environment events: published once, replayable for as long as they are kept.

use std::pin::Pin;
use std::task::{Context, Poll};

use agentbox_contracts::environment::EnvironmentEvent;
use agentbox_contracts::subjects::{self, EVENTS_STREAM};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use futures::{Stream, StreamExt};
use tracing::Span;

use crate::connection::Bus;
use crate::error::BusError;
use crate::trace;

/// An event and its place in the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Rises with every event; what `Last-Event-ID` carries.
    pub sequence: u64,
    pub event: EnvironmentEvent,
    /// How many more are stored now; 0: caught up.
    pub pending: u64,
}

/// Events in order. Survives reconnects; ends only with an error.
pub struct EventStream {
    messages: Ordered,
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
        let stream = self
            .jetstream()
            .get_stream_no_info(EVENTS_STREAM)
            .await
            .map_err(BusError::nats("reading events"))?;
        let deliver_policy = match from_sequence {
            0 => DeliverPolicy::All,
            start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
        };
        let consumer = stream
            .create_consumer(OrderedConfig {
                filter_subject: filter,
                deliver_policy,
                ..OrderedConfig::default()
            })
            .await
            .map_err(BusError::nats("reading events"))?;
        let messages = consumer
            .messages()
            .await
            .map_err(BusError::nats("reading events"))?;
        Ok(EventStream { messages })
    }

    /// How many stored events match `filter`: whether a replay has anything to wait for.
    ///
    /// # Errors
    /// When JetStream cannot be reached.
    pub async fn has_events(&self, filter: &str) -> Result<bool, BusError> {
        let stream = self
            .jetstream()
            .get_stream_no_info(EVENTS_STREAM)
            .await
            .map_err(BusError::nats("reading events"))?;
        let mut subjects = stream
            .info_with_subjects(filter)
            .await
            .map_err(BusError::nats("reading events"))?;
        Ok(subjects.next().await.is_some())
    }
}

impl Stream for EventStream {
    type Item = Result<StoredEvent, BusError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = futures::ready!(self.messages.poll_next_unpin(context));
        Poll::Ready(next.map(|message| {
            let message = message.map_err(BusError::nats("reading events"))?;
            let info = message.info().map_err(BusError::nats("reading events"))?;
            let (sequence, pending) = (info.stream_sequence, info.pending);
            let event = serde_json::from_slice(&message.payload)
                .map_err(|error| BusError::Malformed(error.to_string()))?;
            Ok(StoredEvent {
                sequence,
                event,
                pending,
            })
        }))
    }
}
