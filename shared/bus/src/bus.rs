//! The handle that services hold: it owns the connections and gives access to the parts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::audit::{AuditEntry, AuditHead};
use agentbox_contracts::dead_letter::{DeadLetter, DeadLetterContent};
use agentbox_contracts::environment::{EnvironmentEvent, Route};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::{EnvironmentId, InstanceId};
use agentbox_contracts::rpc::{ClusterRpc, InstanceRpc, Rpc, SessionRpc};
use agentbox_contracts::subjects;
use async_nats::jetstream;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::audit::{self, AuditQueue};
use crate::client::{BusConfig, Client, Reports};
use crate::dead_letter::stored;
use crate::error::BusError;
use crate::event_queue::{self, EventQueue};
use crate::events::{self, EventStream};
use crate::replies::Replies;
use crate::routes::{RouteMirror, Routes};
use crate::rpc::{self, Server};
use crate::session::{Acceptor, Hub, Session};
use crate::work::{self, WorkQueue};
use crate::{counter, metrics, streams, trace};

/// How long [`Bus::close`] may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);

/// A handle to the bus. Clones share the connections.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    replies: Replies,
    hub: Hub,
    routes: Routes,
    instance: InstanceId,
    violation: watch::Receiver<Option<String>>,
}

impl Bus {
    /// Connects, and retries for up to half a minute while NATS starts.
    ///
    /// # Errors
    /// When NATS does not answer in that time; at once when it refuses the credentials.
    pub async fn connect(config: BusConfig) -> Result<Self, BusError> {
        metrics::describe();
        let reports = Arc::new(Reports::new());
        let client = Client::connect(&config, "requests", &reports).await?;
        let sessions = Client::connect(&config, "sessions", &reports).await?;
        let hub = Hub::start(sessions, config.service, config.instance.clone()).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                replies: Replies::start(client.clone()).await?,
                routes: Routes::new(client.clone()),
                client,
                hub,
                instance: config.instance,
                violation: reports.violation(),
            }),
        })
    }

    #[must_use]
    pub fn client(&self) -> &async_nats::Client {
        self.inner.client.nats()
    }

    #[must_use]
    pub fn jetstream(&self) -> &jetstream::Context {
        self.inner.client.jetstream()
    }

    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.inner.instance
    }

    /// Whether both connections are established.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.client.is_connected() && self.inner.hub.is_connected()
    }

    /// Resolves when the server has refused a publish or a subscription.
    pub async fn violated(&self) -> String {
        let mut violation = self.inner.violation.clone();
        match violation.wait_for(Option::is_some).await {
            Ok(text) => text.clone().unwrap_or_default(),
            // The connections are closed, and with them the sender: no violation can follow.
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends the sessions and sends the messages that are still queued, for a bounded time.
    pub async fn close(&self) {
        let client = self.client();
        let closing = async {
            self.inner.hub.close().await;
            self.inner.replies.close().await;
            // First, because `drain` does not wait until queued messages are sent.
            let _ = client.flush().await;
            if let Err(error) = client.drain().await {
                tracing::debug!(error = %ErrorChain(&error), "the connection could not be drained");
            }
        };
        if tokio::time::timeout(CLOSE_DEADLINE, closing).await.is_err() {
            tracing::warn!("bus not closed in time");
        }
    }
}

/// Requests and sessions.
impl Bus {
    /// Calls a service and waits for its reply, for at most `deadline`.
    ///
    /// # Errors
    /// The service's error; [`ErrorCode::Unavailable`] at once when no replica serves the
    /// method; [`ErrorCode::Timeout`] when none replies in time.
    pub async fn call<R: Rpc>(
        &self,
        request: &R::Request,
        deadline: Duration,
    ) -> Result<R::Reply, Error> {
        self.require_connection()?;
        let subject = subjects::rpc(R::SERVICE, R::METHOD);
        rpc::call(&self.inner.replies, subject, request, deadline).await
    }

    /// Calls one process of a service and waits for its reply, for at most `deadline`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_instance<R: InstanceRpc>(
        &self,
        instance: &InstanceId,
        request: &R::Request,
        deadline: Duration,
    ) -> Result<R::Reply, Error> {
        self.require_connection()?;
        let subject = subjects::instance_rpc(R::SERVICE, instance, R::METHOD);
        rpc::call(&self.inner.replies, subject, request, deadline).await
    }

    /// Calls an exec-proxy of `cluster` and waits for its reply, for at most `deadline`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_cluster<R: ClusterRpc>(
        &self,
        cluster: &str,
        request: &R::Request,
        deadline: Duration,
    ) -> Result<R::Reply, Error> {
        self.require_connection()?;
        let subject = subjects::exec_rpc(cluster, R::METHOD);
        rpc::call(&self.inner.replies, subject, request, deadline).await
    }

    /// Fails while one of the two connections is lost: the other one probably is too, and its
    /// client has not noticed yet.
    fn require_connection(&self) -> Result<(), Error> {
        if self.is_connected() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::Unavailable,
            "the message bus is not connected",
        ))
    }

    /// Makes a server without methods. Add them, then call [`Server::listen`] and
    /// [`Listening::run`](rpc::Listening::run).
    #[must_use]
    pub fn serve(&self, service: &'static str) -> Server {
        Server::new(self.inner.client.clone(), service)
    }

    /// Opens a session with an exec-proxy of `cluster`. Returns as soon as the request is
    /// sent. When no exec-proxy serves the cluster, or none answers within `deadline`, the
    /// first `recv` returns the error.
    ///
    /// # Errors
    /// When the bus is not connected, or the request is longer than 8 MiB.
    pub async fn open_session<S: SessionRpc>(
        &self,
        cluster: &str,
        open: &S::Open,
        deadline: Duration,
    ) -> Result<Session<S::ToServer, S::ToOpener>, Error> {
        self.inner.hub.open::<S>(cluster, open, deadline).await
    }

    /// Serves sessions of `cluster`, together with the other members of the queue group.
    ///
    /// # Errors
    /// When NATS does not confirm the subscription.
    pub async fn accept_sessions<S: SessionRpc>(
        &self,
        cluster: &str,
        queue: &str,
    ) -> Result<Acceptor<S>, BusError> {
        Acceptor::subscribe(&self.inner.hub, cluster, queue).await
    }
}

/// Measures how long JetStream takes to store a message for `destination`.
async fn measured<T>(
    destination: String,
    storing: impl Future<Output = Result<T, BusError>>,
) -> Result<T, BusError> {
    let begun = Instant::now();
    let stored = storing.await;
    metrics::message_sent(destination, stored.as_ref().err(), begun.elapsed());
    stored
}

/// Commands, events, routes and counters: JetStream.
impl Bus {
    /// Creates or updates all streams, buckets and stores, any number of times. Only the
    /// provisioner has the permissions for it.
    ///
    /// # Errors
    /// When JetStream refuses or does not answer.
    pub async fn provision(&self) -> Result<(), BusError> {
        streams::provision(self.jetstream()).await
    }

    /// Waits until the provisioner has created the streams that `service` uses, for at most a
    /// minute.
    ///
    /// # Errors
    /// When a stream does not exist by then, or JetStream does not answer.
    pub async fn wait_for_streams(&self, service: &str) -> Result<(), BusError> {
        streams::wait(self.jetstream(), service).await
    }

    /// Changes after each reconnect, to a server that may have lost its data.
    #[must_use]
    pub fn reconnects(&self) -> watch::Receiver<u64> {
        self.inner.client.reconnected()
    }

    /// Queues a command. A second command with the same `message_id` within two minutes is
    /// dropped.
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
        let destination = trace::template(&subject);
        let sent = work::send(&self.inner.client, subject, body, message_id, expires_in);
        measured(destination, sent).await
    }

    /// Opens the durable consumer `consumer` of the commands that match `filter`. A handler
    /// gets each command at most `max_deliver` times. A command whose progress is not
    /// acknowledged within `ack_wait` is delivered again.
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
        let client = self.inner.client.clone();
        WorkQueue::open(
            client,
            consumer,
            filter,
            ack_wait,
            max_deliver,
            max_in_flight,
        )
        .await
    }

    /// Publishes an event and returns its sequence. A second event with the same `message_id`
    /// within two minutes is dropped.
    ///
    /// # Errors
    /// When JetStream has not acknowledged it.
    pub async fn publish_event(
        &self,
        event: &EnvironmentEvent,
        message_id: &str,
    ) -> Result<u64, BusError> {
        let subject = subjects::event(&event.owner, &event.environment_id, event.kind);
        let published = events::publish(&self.inner.client, event, message_id);
        measured(trace::template(&subject), published).await
    }

    /// Reads the events whose subject matches `filter`, from `from_sequence` on; 0 is the
    /// oldest stored event.
    ///
    /// # Errors
    /// When JetStream cannot be reached.
    pub async fn events(
        &self,
        filter: String,
        from_sequence: u64,
    ) -> Result<EventStream, BusError> {
        events::read(&self.inner.client, filter, from_sequence).await
    }

    /// Reads the newest `max` of the stored events whose subject matches `filter`, and those that
    /// follow. `None` when none is stored.
    ///
    /// # Errors
    /// When JetStream cannot be reached.
    pub async fn newest_events(
        &self,
        filter: String,
        max: u64,
    ) -> Result<Option<EventStream>, BusError> {
        events::read_newest(&self.inner.client, filter, max).await
    }

    /// The events that this service has not processed, for a service with a durable consumer of them.
    #[must_use]
    pub fn event_queue(&self) -> EventQueue {
        EventQueue::new(self.inner.client.clone())
    }

    /// Measures how many events wait for this service's durable consumer, until `shutdown`.
    pub async fn measure_event_lag(&self, shutdown: CancellationToken) {
        event_queue::measure_lag(self.inner.client.clone(), shutdown).await;
    }

    /// Writes the route of an environment.
    ///
    /// # Errors
    /// When JetStream has not acknowledged it.
    pub async fn put_route(&self, id: &EnvironmentId, route: &Route) -> Result<(), BusError> {
        measured(
            subjects::ROUTES_BUCKET.to_owned(),
            self.inner.routes.put(id, route),
        )
        .await
    }

    /// Deletes the route of an environment.
    ///
    /// # Errors
    /// When JetStream has not acknowledged it.
    pub async fn delete_route(&self, id: &EnvironmentId) -> Result<(), BusError> {
        measured(
            subjects::ROUTES_BUCKET.to_owned(),
            self.inner.routes.delete(id),
        )
        .await
    }

    /// A mirror of all routes. [`RouteMirror::run`] keeps it up to date.
    #[must_use]
    pub fn mirror_routes(&self) -> RouteMirror {
        self.inner.routes.mirror()
    }

    /// Adds `by` to the counter at `subject` and returns its total. A total below zero is an error.
    ///
    /// # Errors
    /// When JetStream does not answer within `deadline` or refuses.
    pub async fn increment(
        &self,
        subject: String,
        by: i64,
        deadline: Duration,
    ) -> Result<u64, BusError> {
        if !self.is_connected() {
            return Err(BusError::Disconnected);
        }
        counter::increment(&self.inner.replies, subject, by, deadline).await
    }
}

/// Dead letters: JetStream. Only the scheduler has the permissions for them.
impl Bus {
    /// One page of dead letters, newest first, and the number of all.
    ///
    /// # Errors
    /// When JetStream does not answer within a few seconds.
    pub async fn dead_letters(
        &self,
        limit: u32,
        offset: u64,
    ) -> Result<(Vec<DeadLetter>, u64), BusError> {
        stored::list(&self.inner.client, limit, offset).await
    }

    /// One dead letter with its content; `None` when there is none with this number.
    ///
    /// # Errors
    /// As [`Self::dead_letters`].
    pub async fn dead_letter(&self, number: u64) -> Result<Option<DeadLetterContent>, BusError> {
        stored::get(&self.inner.client, number).await
    }

    /// Queues the command of a dead letter again. It is dropped unless a replica processes it within
    /// `expires_in`.
    ///
    /// # Errors
    /// When JetStream has not acknowledged it.
    pub async fn replay_dead_letter(
        &self,
        content: &DeadLetterContent,
        expires_in: Duration,
    ) -> Result<(), BusError> {
        stored::replay(&self.inner.client, content, expires_in).await
    }

    /// Removes a dead letter. Succeeds for one that is gone.
    ///
    /// # Errors
    /// As [`Self::dead_letters`].
    pub async fn discard_dead_letter(&self, number: u64) -> Result<(), BusError> {
        stored::discard(&self.inner.client, number).await
    }
}

/// The audit trail: JetStream.
impl Bus {
    /// Stores an entry for the trail. A second entry with the same id within two minutes is
    /// dropped.
    ///
    /// # Errors
    /// When JetStream has not stored it within `deadline`.
    pub async fn record_audit(
        &self,
        entry: &AuditEntry,
        deadline: Duration,
    ) -> Result<(), BusError> {
        if !self.is_connected() {
            return Err(BusError::Disconnected);
        }
        let destination = subjects::audit(entry.action);
        let published = audit::publish(&self.inner.replies, entry, deadline);
        measured(destination, published).await
    }

    /// The entries that other services have stored and the trail does not have yet.
    #[must_use]
    pub fn audit_queue(&self) -> AuditQueue {
        AuditQueue::new(self.inner.client.clone())
    }

    /// Measures how many entries wait for the trail, until `shutdown`.
    pub async fn measure_audit_lag(&self, shutdown: CancellationToken) {
        audit::measure_lag(self.inner.client.clone(), shutdown).await;
    }

    /// Publishes the head of the trail's chain.
    ///
    /// # Errors
    /// When JetStream has not stored it within `deadline`.
    pub async fn publish_audit_head(
        &self,
        head: &AuditHead,
        deadline: Duration,
    ) -> Result<(), BusError> {
        audit::publish_head(&self.inner.replies, head, deadline).await
    }

    /// The published heads of the chain that are still kept, oldest first.
    ///
    /// # Errors
    /// When JetStream cannot be reached.
    pub async fn audit_heads(&self) -> Result<Vec<AuditHead>, BusError> {
        audit::heads(&self.inner.client).await
    }
}
