//! The server: its handlers by subject, its subscriptions, and its orderly stop.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::rpc::{ClusterRpc, InstanceRpc, Rpc};
use agentbox_contracts::subjects;
use async_nats::Subscriber;
use bytes::Bytes;
use futures::stream::SelectAll;
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::discovery::Discovery;
use super::endpoint::{Endpoint, Handler};
use super::in_flight::InFlight;
use crate::client::Client;
use crate::error::BusError;
use crate::message::encode;
use crate::subscription::{confirm, leave};

/// How long requests in flight may take to complete when the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// The methods that one service serves. Replicas share the requests through a queue group.
pub struct Server {
    service: &'static str,
    served: Served,
}

/// The methods and their description.
pub(super) struct Served {
    pub(super) client: Client,
    pub(super) endpoints: HashMap<String, Endpoint>,
    pub(super) discovery: Discovery,
}

/// A server whose subscriptions NATS has confirmed. Requests wait for [`Listening::run`].
pub struct Listening {
    requests: SelectAll<Subscriber>,
    served: Served,
}

impl Server {
    pub(crate) fn new(client: Client, service: &'static str) -> Self {
        Self {
            service,
            served: Served {
                client,
                endpoints: HashMap::new(),
                discovery: Discovery::new(service),
            },
        }
    }

    /// Serves `R` with `handler`.
    #[must_use]
    pub fn on<R: Rpc, F, Fut>(self, handler: F) -> Self
    where
        F: Fn(R::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Reply, Error>> + Send + 'static,
    {
        self.on_subject(subjects::rpc(R::SERVICE, R::METHOD), handler)
    }

    /// Serves `R` with `handler`, which gets a clone of `state` with each request.
    ///
    /// `state` is cheap to clone: an [`Arc`], or a handle with one in it.
    #[must_use]
    pub fn on_shared<R: Rpc, S, F, Fut>(self, state: &S, handler: F) -> Self
    where
        S: Clone + Send + Sync + 'static,
        F: Fn(S, R::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Reply, Error>> + Send + 'static,
    {
        let state = state.clone();
        self.on::<R, _, _>(move |request| handler(state.clone(), request))
    }

    /// Serves `R` with `handler`, for one process.
    #[must_use]
    pub fn on_instance<R: InstanceRpc, F, Fut>(self, instance: &InstanceId, handler: F) -> Self
    where
        F: Fn(R::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Reply, Error>> + Send + 'static,
    {
        let subject = subjects::instance_rpc(R::SERVICE, instance, R::METHOD);
        self.on_subject(subject, handler)
    }

    /// Serves `R` with `handler`, for one cluster.
    #[must_use]
    pub fn on_cluster<R: ClusterRpc, F, Fut>(self, cluster: &str, handler: F) -> Self
    where
        F: Fn(R::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Reply, Error>> + Send + 'static,
    {
        self.on_subject(subjects::exec_rpc(cluster, R::METHOD), handler)
    }

    fn on_subject<Q, P, F, Fut>(mut self, subject: String, handler: F) -> Self
    where
        Q: DeserializeOwned + Send + 'static,
        P: Serialize + Send + 'static,
        F: Fn(Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<P, Error>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let erased: Handler = Arc::new(move |body: Bytes| {
            let handler = handler.clone();
            async move {
                let request = serde_json::from_slice(&body).map_err(|error| {
                    tracing::error!(error = %ErrorChain(&error), "request not decoded");
                    Error::new(ErrorCode::BadRequest, "the request could not be decoded")
                })?;
                encode(&handler(request).await?)
            }
            .boxed()
        });
        self.served.endpoints.insert(subject, Endpoint::new(erased));
        self
    }

    /// Subscribes. After this returns, every request reaches this server, so the service may
    /// report that it is ready.
    ///
    /// # Errors
    /// When NATS does not confirm the subscriptions.
    pub async fn listen(self) -> Result<Listening, BusError> {
        let Self { service, served } = self;
        let client = served.client.nats();
        let operation = "subscribing to requests";
        let mut requests = SelectAll::new();
        for subject in served.endpoints.keys() {
            let subscription = client
                .queue_subscribe(subject.clone(), service.to_owned())
                .await
                .map_err(BusError::nats(operation))?;
            requests.push(subscription);
        }
        for subject in served.discovery.subjects() {
            let subscription = client
                .subscribe(subject)
                .await
                .map_err(BusError::nats(operation))?;
            requests.push(subscription);
        }
        confirm(&served.client).await?;
        Ok(Listening { requests, served })
    }
}

impl Listening {
    /// Serves until `shutdown`. Then it completes the requests that it has received, for at
    /// most ten seconds.
    ///
    /// # Errors
    /// When the bus is closed before `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), BusError> {
        let Self {
            mut requests,
            served,
        } = self;
        let in_flight = InFlight::new(served);
        loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => break,
                message = requests.next() => message.ok_or(BusError::Disconnected)?,
            };
            in_flight.start(message);
        }
        // New requests go to the other members of the queue group. Received requests still get a
        // reply.
        leave(in_flight.client(), requests.iter_mut()).await;
        let drained = async {
            while let Some(message) = requests.next().await {
                in_flight.start(message);
            }
            in_flight.wait().await;
        };
        if tokio::time::timeout(DRAIN_DEADLINE, drained).await.is_err() {
            tracing::warn!(
                requests = in_flight.len(),
                "requests in flight aborted: they did not complete in time"
            );
            in_flight.abort().await;
        }
        Ok(())
    }
}
