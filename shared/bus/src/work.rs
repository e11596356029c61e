//! Commands on a JetStream work queue: carried out at least once by one replica or
//! another, or kept as a dead letter.
//!
//! * I1. A command is acknowledged after its handler succeeded, never before.
//! * I2. While a handler runs, progress is acknowledged, so that nobody else starts it.
//! * I3. What failed too often goes to the dead letters first and is removed then.
//! * I4. A command past its `expires_at` is removed without being carried out.
//! * I5. A replica takes what it has a free slot for, so that nothing waits in a busy one
//!   while another is idle, or is counted as tried when it was not.
//! * I6. A replica that stops hands back at once what it has not begun.

mod delivery;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::subjects::{COMMANDS_STREAM, HEADER_EXPIRES_AT};
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

use crate::connection::Bus;
use crate::error::BusError;
use crate::rpc::unix_ms_in;
use crate::trace;

/// How long handlers in flight may take to end when the service stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// After the pull was broken.
const PULL_RETRY: Duration = Duration::from_millis(250);
/// An idle pull is begun again this often.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// What a pull may take longer than that: then its end was lost.
const PULL_GRACE: Duration = Duration::from_secs(1);

/// One delivery of a command.
#[derive(Clone, Debug)]
pub struct Command {
    pub subject: String,
    pub body: Bytes,
    /// 1 at first.
    pub attempt: u32,
}

/// Not done: try again after so long.
#[derive(Clone, Debug)]
pub struct Retry {
    pub after: Duration,
    pub reason: String,
}

/// A durable consumer of commands, shared by all replicas of a service.
pub struct WorkQueue {
    bus: Bus,
    consumer: PullConsumer,
    config: pull::Config,
    ack_wait: Duration,
    max_deliver: i64,
    max_in_flight: usize,
}

impl Bus {
    /// Queues a command. The same `message_id` again, within two minutes, is no second one.
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
        let body = serde_json::to_vec(body).map_err(|e| BusError::Malformed(e.to_string()))?;
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id);
        headers.insert(HEADER_EXPIRES_AT, unix_ms_in(expires_in).to_string());
        trace::inject(&Span::current(), &mut headers);
        self.jetstream()
            .publish_with_headers(subject, headers, body.into())
            .await
            .map_err(BusError::nats("sending a command"))?
            .await
            .map(|_| ())
            .map_err(BusError::nats("sending a command"))
    }

    /// The durable consumer `consumer` of the commands that match `filter`. A handler gets
    /// each at most `max_deliver` times, and has `ack_wait` to show that it lives.
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
        let config = pull::Config {
            durable_name: Some(consumer.to_owned()),
            filter_subject: filter,
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            // Counted here: what the server stops delivering stays in the queue for ever,
            // also when a replica died while it wrote the dead letter.
            max_deliver: -1,
            max_ack_pending: 10_000,
            ..pull::Config::default()
        };
        Ok(WorkQueue {
            bus: self.clone(),
            consumer: self.consumer(&config).await?,
            config,
            ack_wait,
            max_deliver,
            max_in_flight: max_in_flight.max(1),
        })
    }

    async fn consumer(&self, config: &pull::Config) -> Result<PullConsumer, BusError> {
        self.jetstream()
            .get_stream_no_info(COMMANDS_STREAM)
            .await
            .map_err(BusError::nats("opening the work queue"))?
            .create_consumer(config.clone())
            .await
            .map_err(BusError::nats("opening the work queue"))
    }
}

/// Handlers that run.
struct InFlight {
    slots: Arc<Semaphore>,
    tracker: TaskTracker,
    give_up: CancellationToken,
}

impl InFlight {
    /// All free slots, once there is one.
    async fn free(&self) -> Vec<OwnedSemaphorePermit> {
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
    /// Carries out commands until `shutdown`, several at once. A broken pull is begun again.
    pub async fn run<F, Fut>(mut self, handler: F, shutdown: CancellationToken)
    where
        F: Fn(Command) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Retry>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let in_flight = InFlight {
            slots: Arc::new(Semaphore::new(self.max_in_flight)),
            tracker: TaskTracker::new(),
            give_up: CancellationToken::new(),
        };
        while !shutdown.is_cancelled() {
            let Err(error) = self.pull(&handler, &in_flight, &shutdown).await else {
                continue;
            };
            tracing::warn!(%error, "commands cannot be pulled; trying again");
            let again = async {
                tokio::time::sleep(PULL_RETRY).await;
                // The consumer itself may be what is gone.
                self.bus.consumer(&self.config).await
            };
            match shutdown.run_until_cancelled(again).await {
                Some(Ok(consumer)) => self.consumer = consumer,
                Some(Err(error)) => tracing::debug!(%error, "opening the work queue again"),
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
                "commands in flight did not end; another replica takes them"
            );
            in_flight.give_up.cancel();
            in_flight.tracker.wait().await;
        }
    }

    /// One pull: for as many commands as there are free slots.
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
        let mut reconnected = self.bus.reconnected();
        let Some(mut free) = shutdown.run_until_cancelled(in_flight.free()).await else {
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
        let over = tokio::time::sleep(PULL_EXPIRES + PULL_GRACE);
        tokio::pin!(over);
        while let Some(slot) = free.pop() {
            let message = tokio::select! {
                biased;
                () = shutdown.cancelled() => return hand_back(messages).await,
                message = messages.next() => message,
                // A server that was away has forgotten the pull.
                _ = reconnected.changed() => return Ok(()),
                () = &mut over => return Ok(()),
            };
            let Some(message) = message else {
                return Ok(());
            };
            let message = message.map_err(BusError::nats("pulling commands"))?;
            let delivery = Delivery {
                bus: self.bus.clone(),
                ack_wait: self.ack_wait,
                max_deliver: self.max_deliver,
                message,
            };
            let (handler, give_up) = (handler.clone(), in_flight.give_up.clone());
            in_flight.tracker.spawn(async move {
                let done = give_up
                    .run_until_cancelled(delivery.carry_out(&*handler))
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

/// What has come and will not be begun goes to another replica now, not after its ack wait.
async fn hand_back(mut messages: pull::Batch) -> Result<(), BusError> {
    while let Some(Some(message)) = messages.next().now_or_never() {
        let message = message.map_err(BusError::nats("handing commands back"))?;
        if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
            tracing::debug!(%error, "a command could not be handed back");
        }
    }
    Ok(())
}
