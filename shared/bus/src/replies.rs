//! Replies to this process's requests: one subscription, and a table of who waits.
//!
//! The client library has its own, which keeps an entry for every request that was never
//! answered; during an outage that is every request.
//!
//! * I1. An entry goes when its request does: answered, out of time or dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, PublishError, StatusCode};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::BusError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("nobody serves the subject")]
    NoResponders,
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    #[error("the request cannot be sent: {0}")]
    Publish(#[from] PublishError),
    #[error("the bus has been closed")]
    Closed,
}

type Waiting = Mutex<HashMap<u64, oneshot::Sender<Message>>>;

pub(crate) struct Replies {
    client: Client,
    inbox: String,
    next: AtomicU64,
    waiting: Arc<Waiting>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn table(waiting: &Waiting) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request's place in the table.
struct Place<'a> {
    waiting: &'a Waiting,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        table(self.waiting).remove(&self.number);
    }
}

impl Replies {
    pub(crate) async fn start(client: Client) -> Result<Self, BusError> {
        let inbox = client.new_inbox();
        let mut messages = client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(BusError::nats("subscribing to replies"))?;
        let waiting = Arc::new(Waiting::default());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (stopped, answered) = (stop.clone(), waiting.clone());
        tasks.spawn(async move {
            loop {
                let message = tokio::select! {
                    () = stopped.cancelled() => break,
                    message = messages.next() => message,
                };
                let Some(message) = message else { break };
                let number = message
                    .subject
                    .rsplit('.')
                    .next()
                    .and_then(|n| n.parse().ok());
                let waiter = number.and_then(|number: u64| table(&answered).remove(&number));
                if let Some(waiter) = waiter {
                    // Too late is as good as never.
                    let _ = waiter.send(message);
                }
            }
            // Who still waits is told by the closed channel.
            table(&answered).clear();
        });
        Ok(Self {
            client,
            inbox,
            next: AtomicU64::new(0),
            waiting,
            stop,
            tasks,
        })
    }

    pub(crate) async fn request(
        &self,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Message, RequestError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (waiter, reply) = oneshot::channel();
        table(&self.waiting).insert(number, waiter);
        let _place = Place {
            waiting: &self.waiting,
            number,
        };
        let inbox = format!("{}.{number}", self.inbox);
        let exchange = async {
            self.client
                .publish_with_reply_and_headers(subject, inbox, headers, body)
                .await?;
            reply.await.map_err(|_| RequestError::Closed)
        };
        let message = tokio::time::timeout(deadline, exchange)
            .await
            .map_err(|_| RequestError::Deadline(deadline))??;
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(RequestError::NoResponders);
        }
        Ok(message)
    }

    pub(crate) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentbox_testing::TestNats;
    use futures::future::join_all;

    const SOON: Duration = Duration::from_millis(100);

    async fn client() -> Client {
        let nats = TestNats::shared().await.unwrap();
        let (user, password) = nats.all_access();
        let options =
            async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
        options.connect(&nats.url).await.unwrap()
    }

    #[tokio::test]
    async fn a_request_that_is_not_answered_leaves_no_entry() {
        let client = client().await;
        let mut silent = client.subscribe("silent").await.unwrap();
        let replies = Replies::start(client).await.unwrap();
        let ask =
            |deadline| replies.request("silent".into(), HeaderMap::new(), Bytes::new(), deadline);
        for outcome in join_all((0..100).map(|_| ask(SOON))).await {
            assert!(matches!(outcome, Err(RequestError::Deadline(SOON))));
        }
        assert_eq!(table(&replies.waiting).len(), 0);

        // Asked, and dropped before the deadline.
        let hour = Duration::from_secs(3600);
        let dropped = tokio::time::timeout(SOON, join_all((0..100).map(|_| ask(hour)))).await;
        assert!(dropped.is_err());
        assert_eq!(table(&replies.waiting).len(), 0);
        assert!(silent.next().await.is_some());
    }

    #[tokio::test]
    async fn who_waits_is_told_when_the_bus_is_closed() {
        let client = client().await;
        let mut silent = client.subscribe("silent-too").await.unwrap();
        let replies = Replies::start(client).await.unwrap();
        let hour = Duration::from_secs(3600);
        let asked = replies.request("silent-too".into(), HeaderMap::new(), Bytes::new(), hour);
        let close = async {
            silent.next().await.unwrap();
            replies.close().await;
        };
        let (outcome, ()) = tokio::join!(asked, close);
        assert!(matches!(outcome, Err(RequestError::Closed)));
    }
}
