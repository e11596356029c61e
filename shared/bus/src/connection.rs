//! The two connections of a process, and whether they stand.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::permissions;
use async_nats::connection::State;
use async_nats::jetstream::{self, kv::Store};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::{OnceCell, watch};

use crate::error::BusError;
use crate::replies::Replies;
use crate::session::Hub;

/// How long the first connection is tried for: NATS may be starting too.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const RECONNECT_DELAY: Duration = Duration::from_millis(250);
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// JetStream's own requests.
const JETSTREAM_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);
/// Dropped messages come by the thousand; they are counted all, but told of this often.
const SLOW_CONSUMER_LOG: Duration = Duration::from_secs(1);
/// Messages that wait in one subscription: 2 MiB of requests' heads, or on the connection
/// of the sessions 128 MiB of full frames. More are dropped, which sessions repair.
const SUBSCRIPTION_CAPACITY: usize = 4096;

#[derive(Clone, Debug)]
pub struct BusConfig {
    pub url: String,
    pub user: String,
    pub password: String,
    /// One of [`permissions::SERVICES`]; names the inbox and session subjects.
    pub service: &'static str,
    pub instance: InstanceId,
}

/// A handle to the bus. Clones share the connections.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    jetstream: jetstream::Context,
    replies: Replies,
    hub: Hub,
    instance: InstanceId,
    violation: watch::Receiver<Option<String>>,
    /// The route bucket, once it has been opened: opening it is a round trip.
    routes: OnceCell<Store>,
    connects: watch::Receiver<u64>,
}

/// What the connections report.
struct Reports {
    violation: watch::Sender<Option<String>>,
    /// How often one of them was made.
    connects: watch::Sender<u64>,
    /// When dropped messages were last told of.
    slow_told: Mutex<Option<Instant>>,
}

impl Reports {
    /// Whether dropped messages are to be told of now.
    fn tell_slow(&self) -> bool {
        let mut told = self
            .slow_told
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if told.is_some_and(|told| now - told < SLOW_CONSUMER_LOG) {
            return false;
        }
        *told = Some(now);
        true
    }
}

async fn dial(
    config: &BusConfig,
    purpose: &str,
    reports: Arc<Reports>,
) -> Result<Client, BusError> {
    let begun = tokio::time::Instant::now();
    loop {
        let reports = reports.clone();
        let mut options = ConnectOptions::new()
            .name(format!("agentbox-{}-{purpose}", config.service))
            .custom_inbox_prefix(permissions::inbox_prefix(config.service))
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .reconnect_delay_callback(|_| RECONNECT_DELAY)
            .event_callback(move |event| {
                let reports = reports.clone();
                async move { note_event(&event, &reports) }
            });
        if !config.user.is_empty() {
            options = options.user_and_password(config.user.clone(), config.password.clone());
        }
        match options.connect(&config.url).await {
            Ok(client) => return Ok(client),
            Err(source)
                if source.kind() == ConnectErrorKind::AuthorizationViolation
                    || begun.elapsed() > CONNECT_DEADLINE =>
            {
                return Err(BusError::Connect {
                    url: config.url.clone(),
                    source,
                });
            }
            Err(error) => {
                tracing::info!(%error, "NATS is not there yet");
                tokio::time::sleep(RECONNECT_DELAY).await;
            }
        }
    }
}

fn note_event(event: &Event, reports: &Reports) {
    match event {
        Event::ServerError(error) => {
            let text = error.to_string();
            tracing::error!(error = text, "NATS reported an error");
            if text.to_ascii_lowercase().contains("permissions violation") {
                reports.violation.send_replace(Some(text));
            }
        }
        Event::SlowConsumer(subscription) => {
            metrics::counter!("agentbox_bus_slow_consumer_total").increment(1);
            if reports.tell_slow() {
                tracing::warn!(
                    subscription,
                    "messages were dropped: a subscription is too slow"
                );
            }
        }
        Event::Connected | Event::Disconnected | Event::LameDuckMode => {
            if *event == Event::Connected {
                reports.connects.send_modify(|connects| *connects += 1);
            }
            tracing::info!(event = %event, "NATS connection");
        }
        other => tracing::debug!(event = %other, "NATS connection"),
    }
}

impl Bus {
    /// Connects, waiting up to half a minute for a server that starts.
    ///
    /// # Errors
    /// When none answers in that time; at once when one refuses the credentials.
    pub async fn connect(config: BusConfig) -> Result<Self, BusError> {
        let reports = Arc::new(Reports {
            violation: watch::Sender::new(None),
            connects: watch::Sender::new(0),
            slow_told: Mutex::default(),
        });
        let (violation, connects) = (reports.violation.subscribe(), reports.connects.subscribe());
        let client = dial(&config, "requests", reports.clone()).await?;
        let sessions = dial(&config, "sessions", reports).await?;
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(JETSTREAM_TIMEOUT);
        let replies = Replies::start(client.clone()).await?;
        let hub = Hub::start(sessions, config.service, config.instance.clone()).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                jetstream,
                replies,
                hub,
                instance: config.instance,
                violation,
                routes: OnceCell::new(),
                connects,
            }),
        })
    }

    #[must_use]
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    #[must_use]
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.inner.jetstream
    }

    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.inner.instance
    }

    pub(crate) fn routes_cell(&self) -> &OnceCell<Store> {
        &self.inner.routes
    }

    pub(crate) fn replies(&self) -> &Replies {
        &self.inner.replies
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    /// Changes when a connection has been made again; what the server kept in memory for
    /// this process is then gone.
    pub(crate) fn reconnected(&self) -> watch::Receiver<u64> {
        let mut connects = self.inner.connects.clone();
        connects.mark_unchanged();
        connects
    }

    /// Whether both connections stand.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.client.connection_state() == State::Connected && self.inner.hub.is_connected()
    }

    /// Resolves when the server has refused a publish or a subscription.
    pub async fn violated(&self) -> String {
        let mut violation = self.inner.violation.clone();
        match violation.wait_for(Option::is_some).await {
            Ok(text) => text.clone().unwrap_or_default(),
            // The connections, and with them the sender, are gone: nothing more to tell.
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends the sessions and sends what is still queued, for a bounded time.
    pub async fn close(&self) {
        let closing = async {
            self.inner.hub.close().await;
            self.inner.replies.close().await;
            // Draining itself does not wait for what is queued to be on the wire.
            let _ = self.inner.client.flush().await;
            if let Err(error) = self.inner.client.drain().await {
                tracing::debug!(%error, "draining");
            }
        };
        if tokio::time::timeout(CLOSE_DEADLINE, closing).await.is_err() {
            tracing::warn!("the bus did not close in time");
        }
    }
}
