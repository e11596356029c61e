//! Commands on a JetStream work queue. One replica or another processes each command at least
//! once, or it becomes a dead letter.
//!
//! * I1. A command is acknowledged after its handler succeeded, never before.
//! * I2. While a handler runs, its progress is acknowledged, so that no other replica starts
//!   the command.
//! * I3. A command that failed too often is first stored as a dead letter and then removed.
//! * I4. An expired command is removed without being processed.
//! * I5. A replica pulls as many commands as it has free slots. So no command waits in a busy
//!   replica while another is idle, and none counts as attempted that was not started.
//! * I6. A replica that stops returns at once the commands that it has not started.

mod delivery;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::subjects::COMMANDS_STREAM;
use async_nats::HeaderMap;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Span;

use delivery::Delivery;

use crate::client::Client;
use crate::error::BusError;
use crate::message::set_expiry;
use crate::{lag, trace};

/// How long handlers in flight may take to complete when the service stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// The wait after a pull failed.
const PULL_RETRY_DELAY: Duration = Duration::from_millis(250);
/// How long an idle pull lasts before the next one.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// How much longer a pull may take. After that, the message about its end was lost.
const PULL_GRACE: Duration = Duration::from_secs(1);

/// One delivery of a command.
#[derive(Clone, Debug)]
pub struct Command {
    pub subject: String,
    pub body: Bytes,
    /// The number of this delivery, from 1.
    pub attempt: u32,
}

/// The handler failed: deliver the command again after `after`.
#[derive(Clone, Debug)]
pub struct Retry {
    pub after: Duration,
    pub reason: String,
}

/// A durable consumer of commands that all replicas of a service share.
pub struct WorkQueue {
    client: Client,
    consumer: PullConsumer,
    config: pull::Config,
    ack_wait: Duration,
    max_deliver: i64,
    max_in_flight: usize,
}

/// Queues a command. JetStream drops a second message with the same id.
pub(crate) async fn send<T: Serialize>(
    client: &Client,
    subject: String,
    body: &T,
    message_id: &str,
    expires_in: Duration,
) -> Result<(), BusError> {
    let body = serde_json::to_vec(body)?;
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id);
    set_expiry(&mut headers, expires_in);
    trace::inject(&Span::current(), &mut headers);
    client
        .jetstream()
        .publish_with_headers(subject, headers, body.into())
        .await
        .map_err(BusError::nats("sending a command"))?
        .await
        .map(|_| ())
        .map_err(BusError::nats("sending a command"))
}

async fn open(client: &Client, config: &pull::Config) -> Result<PullConsumer, BusError> {
    client
        .jetstream()
        .get_stream_no_info(COMMANDS_STREAM)
        .await
        .map_err(BusError::nats("opening the work queue"))?
        .create_consumer(config.clone())
        .await
        .map_err(BusError::nats("opening the work queue"))
}

/// The handlers that run.
struct InFlight {
    slots: Arc<Semaphore>,
    tracker: TaskTracker,
    aborted: CancellationToken,
}

impl InFlight {
    /// Waits for a free slot, and takes all free slots.
    async fn take_free_slots(&self) -> Vec<OwnedSemaphorePermit> {
        let mut free = Vec::new();
        // The semaphore is never closed.
        free.extend(self.slots.clone().acquire_owned().await);
        while let Ok(slot) = self.slots.clone().try_acquire_owned() {
            free.push(slot);
        }
        free
    }
}

impl WorkQueue {
    pub(crate) async fn open(
        client: Client,
        consumer: &str,
        filter: String,
        ack_wait: Duration,
        max_deliver: i64,
        max_in_flight: usize,
    ) -> Result<Self, BusError> {
        let config = pull::Config {
            durable_name: Some(consumer.to_owned()),
            filter_subject: filter,
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            // This module counts the deliveries instead of the server. A command that the server
            // no longer delivers would stay in the queue for ever, for example when a replica is
            // killed while it writes the dead letter.
            max_deliver: -1,
            max_ack_pending: 10_000,
            ..pull::Config::default()
        };
        Ok(Self {
            consumer: open(&client, &config).await?,
            client,
            config,
            ack_wait,
            max_deliver,
            max_in_flight: max_in_flight.max(1),
        })
    }

    /// Processes commands until `shutdown`, several at once. Retries a pull that fails.
    pub async fn run<F, Fut>(mut self, handler: F, shutdown: CancellationToken)
    where
        F: Fn(Command) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Retry>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let in_flight = InFlight {
            slots: Arc::new(Semaphore::new(self.max_in_flight)),
            tracker: TaskTracker::new(),
            aborted: CancellationToken::new(),
        };
        in_flight.tracker.spawn(lag::measure(
            self.client.clone(),
            COMMANDS_STREAM,
            self.config.durable_name.clone().unwrap_or_default(),
            shutdown.clone(),
        ));
        while !shutdown.is_cancelled() {
            let Err(error) = self.pull(&handler, &in_flight, &shutdown).await else {
                continue;
            };
            tracing::warn!(error = %ErrorChain(&error), "commands not pulled; retried");
            let reopened = async {
                tokio::time::sleep(PULL_RETRY_DELAY).await;
                // The consumer itself may be lost.
                open(&self.client, &self.config).await
            };
            match shutdown.run_until_cancelled(reopened).await {
                Some(Ok(consumer)) => self.consumer = consumer,
                Some(Err(error)) => {
                    tracing::debug!(error = %ErrorChain(&error), "work queue not reopened; retried");
                }
                None => break,
            }
        }
        in_flight.tracker.close();
        if tokio::time::timeout(DRAIN_DEADLINE, in_flight.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                commands = in_flight.tracker.len(),
                "commands in flight aborted: they did not complete in time; another replica processes them"
            );
            in_flight.aborted.cancel();
            in_flight.tracker.wait().await;
        }
    }

    /// Pulls as many commands as there are free slots, once.
    async fn pull<F, Fut>(
        &self,
        handler: &Arc<F>,
        in_flight: &InFlight,
        shutdown: &CancellationToken,
    ) -> Result<(), BusError>
    where
        F: Fn(Command) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Retry>> + Send + 'static,
    {
        let mut reconnected = self.client.reconnected();
        let Some(mut free) = shutdown
            .run_until_cancelled(in_flight.take_free_slots())
            .await
        else {
            return Ok(());
        };
        let pull = self
            .consumer
            .batch()
            .max_messages(free.len())
            .expires(PULL_EXPIRES)
            .messages();
        let Some(messages) = shutdown.run_until_cancelled(pull).await else {
            return Ok(());
        };
        let mut messages = messages.map_err(BusError::nats("pulling commands"))?;
        let overdue = tokio::time::sleep(PULL_EXPIRES + PULL_GRACE);
        tokio::pin!(overdue);
        while let Some(slot) = free.pop() {
            let message = tokio::select! {
                biased;
                () = shutdown.cancelled() => return nack_undelivered(messages).await,
                message = messages.next() => message,
                // The server has lost the pull.
                _ = reconnected.changed() => return Ok(()),
                () = &mut overdue => return Ok(()),
            };
            let Some(message) = message else {
                return Ok(());
            };
            let message = message.map_err(BusError::nats("pulling commands"))?;
            let delivery = Delivery {
                client: self.client.clone(),
                ack_wait: self.ack_wait,
                max_deliver: self.max_deliver,
                message,
            };
            let (handler, aborted) = (handler.clone(), in_flight.aborted.clone());
            in_flight.tracker.spawn(async move {
                let done = aborted
                    .run_until_cancelled(delivery.process(&*handler))
                    .await;
                if done.is_none() {
                    delivery.acknowledge(AckKind::Nak(None)).await;
                }
                drop(slot);
            });
        }
        Ok(())
    }
}

/// Returns the commands that have arrived and are not started, so that another replica gets
/// them now and not after their ack wait.
async fn nack_undelivered(mut messages: pull::Batch) -> Result<(), BusError> {
    while let Some(Some(message)) = messages.next().now_or_never() {
        let message = message.map_err(BusError::nats("returning commands"))?;
        if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
            tracing::debug!(error = %ErrorChain(&*error), "command not returned");
        }
    }
    Ok(())
}
