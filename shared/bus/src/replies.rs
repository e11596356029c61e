//! Replies to this process's requests: one subscription, and a table of pending requests.
//!
//! The client library has such a table too. It keeps the entry of every request that is never
//! answered, and during an outage no request is answered.
//!
//! * I1. An entry is removed when its request ends: answered, timed out or dropped.
//! * I2. The last token of a reply subject is random, so that no process can guess the reply subject
//!   of another one's request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Message, PublishError, StatusCode};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::Client;
use crate::error::BusError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("no subscriber for the subject")]
    NoResponders,
    #[error("no reply within {0:?}")]
    Deadline(Duration),
    #[error("the request could not be published")]
    Publish(#[from] PublishError),
    #[error("the bus is closed")]
    Closed,
}

/// The pending requests by the last token of their reply subject.
type Pending = Mutex<HashMap<u128, oneshot::Sender<Message>>>;

pub(crate) struct Replies {
    client: Client,
    inbox: String,
    pending: Arc<Pending>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn table(pending: &Pending) -> MutexGuard<'_, HashMap<u128, oneshot::Sender<Message>>> {
    pending.lock()
}

/// Removes a request from the table when it is dropped.
struct PendingGuard<'a> {
    pending: &'a Pending,
    token: u128,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        table(self.pending).remove(&self.token);
    }
}

impl Replies {
    pub(crate) async fn start(client: Client) -> Result<Self, BusError> {
        let inbox = client.nats().new_inbox();
        let mut messages = client
            .nats()
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(BusError::nats("subscribing to replies"))?;
        let pending = Arc::new(Pending::default());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (stopped, answered) = (stop.clone(), pending.clone());
        tasks.spawn(async move {
            loop {
                let message = tokio::select! {
                    () = stopped.cancelled() => break,
                    message = messages.next() => message,
                };
                let Some(message) = message else { break };
                let token = message
                    .subject
                    .rsplit('.')
                    .next()
                    .and_then(|token| token.parse().ok());
                let waiter = token.and_then(|token: u128| table(&answered).remove(&token));
                if let Some(waiter) = waiter {
                    // The request may have timed out meanwhile.
                    let _ = waiter.send(message);
                }
            }
            // The closed channels end the requests that are still pending.
            table(&answered).clear();
        });
        Ok(Self {
            client,
            inbox,
            pending,
            stop,
            tasks,
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Publishes a request and waits for its reply.
    pub(crate) async fn request(
        &self,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Message, RequestError> {
        let token: u128 = rand::random();
        let (waiter, reply) = oneshot::channel();
        table(&self.pending).insert(token, waiter);
        let _guard = PendingGuard {
            pending: &self.pending,
            token,
        };
        let inbox = format!("{}.{token}", self.inbox);
        let exchange = async {
            self.client
                .nats()
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
    use crate::client::{BusConfig, Reports};
    use agentbox_contracts::ids::InstanceId;
    use agentbox_testing::TestNats;
    use futures::future::join_all;

    const SOON: Duration = Duration::from_millis(100);

    async fn client() -> Client {
        let nats = TestNats::shared().await.unwrap();
        let (user, password) = nats.all_access();
        let config = BusConfig {
            url: nats.url.clone(),
            tls_ca: nats.tls_ca.clone(),
            user: user.to_owned(),
            password: password.to_owned(),
            service: "api-gateway",
            instance: InstanceId::random(),
        };
        let reports = Arc::new(Reports::new());
        Client::connect(&config, "test", &reports).await.unwrap()
    }

    #[tokio::test]
    async fn unanswered_request_leaves_no_entry() {
        let client = client().await;
        let mut silent = client.nats().subscribe("silent").await.unwrap();
        let replies = Replies::start(client).await.unwrap();
        let ask =
            |deadline| replies.request("silent".into(), HeaderMap::new(), Bytes::new(), deadline);
        for outcome in join_all((0..100).map(|_| ask(SOON))).await {
            assert!(matches!(outcome, Err(RequestError::Deadline(SOON))));
        }
        assert_eq!(table(&replies.pending).len(), 0);

        // Requests that are dropped before their deadline.
        let hour = Duration::from_secs(3600);
        let dropped = tokio::time::timeout(SOON, join_all((0..100).map(|_| ask(hour)))).await;
        assert!(dropped.is_err());
        assert_eq!(table(&replies.pending).len(), 0);
        assert!(silent.next().await.is_some());
    }

    #[tokio::test]
    async fn reply_subjects_have_random_tokens() {
        let client = client().await;
        let mut silent = client.nats().subscribe("silent-tokens").await.unwrap();
        let replies = Replies::start(client).await.unwrap();
        let ask = || {
            let (headers, body) = (HeaderMap::new(), Bytes::new());
            replies.request("silent-tokens".into(), headers, body, SOON)
        };
        let mut tokens = Vec::new();
        for _ in 0..2 {
            assert!(ask().await.is_err());
            let reply = silent.next().await.unwrap().reply.unwrap();
            let token: u128 = reply.rsplit('.').next().unwrap().parse().unwrap();
            tokens.push(token);
        }
        // Two tokens of a counter would differ in their last bits alone.
        assert!((tokens[0] ^ tokens[1]) >> 32 != 0, "{tokens:?}");
    }

    #[tokio::test]
    async fn closed_bus_ends_pending_requests() {
        let client = client().await;
        let mut silent = client.nats().subscribe("silent-too").await.unwrap();
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
