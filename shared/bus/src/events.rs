//! Environment events. Each is stored once, and can be replayed until its retention ends.

mod search;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::EnvironmentEvent;
use agentbox_contracts::subjects::{self, EVENTS_STREAM};
use async_nats::HeaderMap;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy};
use async_nats::jetstream::stream::Stream as StoredStream;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tracing::Span;

use crate::client::Client;
use crate::error::BusError;
use crate::trace;
use search::{Search, Start};

const READING: &str = "reading events";
/// The wait between two attempts to resume reading.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// How long a reader tries to resume before it ends with the error.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// An event and its position in the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Increases with every event. `Last-Event-ID` is this number.
    pub sequence: u64,
    pub event: EnvironmentEvent,
    /// How many later events are stored; 0 means that the reader has caught up.
    pub pending: u64,
}

/// Events in order. The stream continues after reconnects and restarts of NATS, and ends only
/// with an error.
pub struct EventStream {
    events: BoxStream<'static, Result<StoredEvent, BusError>>,
}

/// A position in the stream, and the consumer that reads from there.
struct Reader {
    client: Client,
    filter: String,
    /// The next sequence to read; 0 is the oldest event.
    from_sequence: u64,
    messages: Option<Ordered>,
    reconnected: watch::Receiver<u64>,
    /// When reading began to fail.
    failing_since: Option<Instant>,
}

impl Reader {
    /// The next event. An error is final.
    async fn next(&mut self) -> Result<StoredEvent, BusError> {
        loop {
            match self.try_next().await {
                Ok(Some(message)) => {
                    self.failing_since = None;
                    return self.advance(&message);
                }
                Ok(None) => self.messages = None,
                Err(error) => {
                    self.messages = None;
                    let since = *self.failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > GIVE_UP_AFTER {
                        return Err(error);
                    }
                    tracing::info!(error = %ErrorChain(&error), "event stream interrupted; retried");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    /// `None` when the server has lost the consumer.
    async fn try_next(&mut self) -> Result<Option<Message>, BusError> {
        let messages = match &mut self.messages {
            Some(messages) => messages,
            None => {
                self.reconnected.mark_unchanged();
                let messages = consume(&self.client, &self.filter, self.from_sequence).await?;
                self.messages.insert(messages)
            }
        };
        tokio::select! {
            message = messages.next() => message.transpose().map_err(BusError::nats(READING)),
            _ = self.reconnected.changed() => Ok(None),
        }
    }

    fn advance(&mut self, message: &Message) -> Result<StoredEvent, BusError> {
        let info = message.info().map_err(BusError::nats(READING))?;
        self.from_sequence = info.stream_sequence + 1;
        let event = serde_json::from_slice(&message.payload)?;
        Ok(StoredEvent {
            sequence: info.stream_sequence,
            event,
            pending: info.pending,
        })
    }
}

/// Publishes an event and returns its sequence. JetStream drops a second message with the
/// same id.
pub(crate) async fn publish(
    client: &Client,
    event: &EnvironmentEvent,
    message_id: &str,
) -> Result<u64, BusError> {
    let body = serde_json::to_vec(event)?;
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id);
    trace::inject(&Span::current(), &mut headers);
    let subject = subjects::event(&event.owner, &event.environment_id, event.kind);
    let ack = client
        .jetstream()
        .publish_with_headers(subject, headers, body.into())
        .await
        .map_err(BusError::nats("publishing an event"))?
        .await
        .map_err(BusError::nats("publishing an event"))?;
    Ok(ack.sequence)
}

/// Reads the events that match `filter`, from `from_sequence` on.
pub(crate) async fn read(
    client: &Client,
    filter: String,
    from_sequence: u64,
) -> Result<EventStream, BusError> {
    let reconnected = client.reconnected();
    let reader = Reader {
        messages: Some(consume(client, &filter, from_sequence).await?),
        client: client.clone(),
        filter,
        from_sequence,
        reconnected,
        failing_since: None,
    };
    let events = futures::stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        let next = reader.next().await;
        // After an event that cannot be decoded, the next ones are still read.
        let continues = matches!(next, Ok(_) | Err(BusError::Malformed(_)));
        let reader = continues.then_some(reader);
        Some((next, reader))
    });
    Ok(EventStream {
        events: events.boxed(),
    })
}

/// Reads the newest `max` of the stored events that match `filter`, and those that follow. `None`
/// when none is stored.
pub(crate) async fn read_newest(
    client: &Client,
    filter: String,
    max: u64,
) -> Result<Option<EventStream>, BusError> {
    let stored = count(client, &filter, 0).await?;
    if stored == 0 {
        return Ok(None);
    }
    let start = find_start(client, &filter, max, stored).await?;
    let events = read(client, filter, start.sequence).await?;
    Ok(Some(events.without_first(start.surplus)))
}

/// Finds a sequence from which at least `max` and at most twice as many events match `filter`.
/// JetStream seeks by sequence only, and each count takes a consumer.
async fn find_start(
    client: &Client,
    filter: &str,
    max: u64,
    stored: u64,
) -> Result<Start, BusError> {
    let mut search = match Search::begin(max, stored) {
        Ok(search) => search,
        Err(start) => return Ok(start),
    };
    let stream = client.jetstream().get_stream(EVENTS_STREAM).await;
    let stream = stream.map_err(BusError::nats(READING))?;
    let state = &stream.cached_info().state;
    search.set_bounds(state.first_sequence, state.last_sequence);
    loop {
        let counted = match search.probe() {
            Some(sequence) => count(client, filter, sequence).await?,
            None => return Ok(search.end()),
        };
        if let Some(start) = search.narrow(counted) {
            return Ok(start);
        }
    }
}

/// How many stored events match `filter`, from `from_sequence` on.
async fn count(client: &Client, filter: &str, from_sequence: u64) -> Result<u64, BusError> {
    let stream = events_stream(client).await?;
    let consumer = create_consumer(&stream, filter, from_sequence).await?;
    let info = consumer.cached_info();
    // Best effort: the server deletes a consumer that nobody uses.
    let _ = stream.delete_consumer(&info.name).await;
    Ok(info.num_pending)
}

async fn consume(client: &Client, filter: &str, from_sequence: u64) -> Result<Ordered, BusError> {
    let stream = events_stream(client).await?;
    create_consumer(&stream, filter, from_sequence)
        .await?
        .messages()
        .await
        .map_err(BusError::nats(READING))
}

async fn events_stream(client: &Client) -> Result<StoredStream<()>, BusError> {
    client
        .jetstream()
        .get_stream_no_info(EVENTS_STREAM)
        .await
        .map_err(BusError::nats(READING))
}

/// Creates a consumer of the events that match `filter`. 0 is the sequence of the oldest event.
async fn create_consumer(
    stream: &StoredStream<()>,
    filter: &str,
    from_sequence: u64,
) -> Result<Consumer<OrderedConfig>, BusError> {
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
        .map_err(BusError::nats(READING))
}

impl EventStream {
    /// Drops the first `count` events. Errors are not dropped.
    fn without_first(self, count: u64) -> Self {
        let mut left = count;
        let events = self.events.filter(move |next| {
            let is_dropped = left > 0 && next.is_ok();
            left -= u64::from(is_dropped);
            std::future::ready(!is_dropped)
        });
        Self {
            events: events.boxed(),
        }
    }
}

impl Stream for EventStream {
    type Item = Result<StoredEvent, BusError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(context)
    }
}
