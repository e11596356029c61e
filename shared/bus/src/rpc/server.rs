//! The answering end: handlers by subject, and the way from the first request to the last.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::rpc::Rpc;
use agentbox_contracts::subjects;
use async_nats::Subscriber;
use bytes::Bytes;
use futures::stream::SelectAll;
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::discovery::Discovery;
use super::encode;
use super::endpoint::{Endpoint, Handler};
use super::in_flight::InFlight;
use crate::connection::Bus;
use crate::error::BusError;
use crate::subscription::{confirm, leave};

/// How long requests in flight may take to end when the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Methods to be served; replicas share the requests through a queue group.
pub struct Server {
    service: &'static str,
    served: Served,
}

/// What is served, and how it is described.
pub(super) struct Served {
    pub(super) bus: Bus,
    pub(super) endpoints: HashMap<String, Endpoint>,
    pub(super) discovery: Discovery,
}

/// A server whose subscriptions NATS has confirmed: requests come, and wait for
/// [`Listening::run`].
pub struct Listening {
    requests: SelectAll<Subscriber>,
    served: Served,
}

impl Server {
    pub(super) fn new(bus: Bus, service: &'static str) -> Self {
        Self {
            service,
            served: Served {
                bus,
                endpoints: HashMap::new(),
                discovery: Discovery::new(service),
            },
        }
    }

    /// Answers `R` with `handler`.
    #[must_use]
    pub fn on<R: Rpc, F, Fut>(self, handler: F) -> Self
    where
        F: Fn(R::Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Reply, Error>> + Send + 'static,
    {
        self.on_subject(subjects::rpc(R::SERVICE, R::METHOD), handler)
    }

    /// Answers requests on `subject` with `handler`.
    #[must_use]
    pub fn on_subject<Q, P, F, Fut>(mut self, subject: String, handler: F) -> Self
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
                    tracing::error!(%error, "a request cannot be read");
                    Error::new(ErrorCode::BadRequest, "the request cannot be read")
                })?;
                encode(&handler(request).await?)
            }
            .boxed()
        });
        self.served.endpoints.insert(subject, Endpoint::new(erased));
        self
    }

    /// Subscribes. Once this has returned, whoever asks is heard: the service may say that
    /// it is ready.
    ///
    /// # Errors
    /// When NATS does not confirm the subscriptions.
    pub async fn listen(self) -> Result<Listening, BusError> {
        let Self { service, served } = self;
        let client = served.bus.client();
        let failed = "subscribing to requests";
        let mut requests = SelectAll::new();
        for subject in served.endpoints.keys() {
            let subscription = client
                .queue_subscribe(subject.clone(), service.to_owned())
                .await
                .map_err(BusError::nats(failed))?;
            requests.push(subscription);
        }
        for subject in served.discovery.subjects() {
            let subscription = client
                .subscribe(subject)
                .await
                .map_err(BusError::nats(failed))?;
            requests.push(subscription);
        }
        confirm(client).await?;
        Ok(Listening { requests, served })
    }
}

impl Listening {
    /// Answers until `shutdown`, then what has come by then, for ten seconds at most.
    ///
    /// # Errors
    /// When the bus is closed before.
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
            in_flight.take(message);
        }
        // Others of the queue group get what would have come here; what has come is still
        // answered.
        leave(in_flight.client(), requests.iter_mut()).await;
        let drained = async {
            while let Some(message) = requests.next().await {
                in_flight.take(message);
            }
            in_flight.ended().await;
        };
        if tokio::time::timeout(DRAIN_DEADLINE, drained).await.is_err() {
            tracing::warn!(
                requests = in_flight.len(),
                "requests in flight did not end in time and are given up"
            );
            in_flight.give_up().await;
        }
        Ok(())
    }
}
