//! The route of each environment: the scheduler writes it, and the gateway mirrors it for
//! its hot paths.
//!
//! The mirror may lag behind. When it has no route, ask the scheduler before answering that there
//! is none.
//!
//! * I1. A deleted route leaves a marker for the mirrors, which expires after
//!   [`MARKER_TTL`]. The bucket does not grow with the number of ended environments.
//! * I2. A mirror reads everything again after a reconnect: the marker of a route that was
//!   deleted meanwhile may have expired.

mod table;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::Route;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects::ROUTES_BUCKET;
use async_nats::jetstream::kv::{Entry, Operation, Store};
use futures::StreamExt;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

pub use table::{RouteTable, RouteWatch};

use crate::client::Client;
use crate::error::BusError;

/// The wait between two attempts to watch the bucket.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// How long the marker of a deleted route is kept: longer than any watch lags behind.
pub(crate) const MARKER_TTL: Duration = Duration::from_secs(60 * 60);
/// How long the next stored route may take while a mirror reads them.
const READ_DEADLINE: Duration = Duration::from_secs(2);

/// The route bucket. Clones share the handle, which is opened once: opening is a round trip.
#[derive(Clone)]
pub(crate) struct Routes {
    client: Client,
    store: Arc<OnceCell<Store>>,
}

impl Routes {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            store: Arc::default(),
        }
    }

    async fn store(&self) -> Result<&Store, BusError> {
        self.store
            .get_or_try_init(|| self.client.jetstream().get_key_value(ROUTES_BUCKET))
            .await
            .map_err(BusError::nats("opening the route bucket"))
    }

    pub(crate) async fn put(&self, id: &EnvironmentId, route: &Route) -> Result<(), BusError> {
        let body = serde_json::to_vec(route)?;
        self.store()
            .await?
            .put(id.as_str(), body.into())
            .await
            .map(|_| ())
            .map_err(BusError::nats("writing a route"))
    }

    pub(crate) async fn delete(&self, id: &EnvironmentId) -> Result<(), BusError> {
        self.store()
            .await?
            .purge_with_ttl(id.as_str(), MARKER_TTL)
            .await
            .map_err(BusError::nats("deleting a route"))
    }

    pub(crate) fn mirror(&self) -> RouteMirror {
        RouteMirror {
            bucket: self.clone(),
            table: RouteTable::default(),
        }
    }
}

/// Keeps a [`RouteTable`] equal to the bucket. Clones share the table.
#[derive(Clone)]
pub struct RouteMirror {
    bucket: Routes,
    table: RouteTable,
}

impl RouteMirror {
    /// The table that the mirror updates.
    #[must_use]
    pub fn table(&self) -> RouteTable {
        self.table.clone()
    }

    /// Updates the table until `shutdown`. Reads the whole bucket again when the watch fails.
    pub async fn run(&self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(self.read()).await.is_some() {}
    }

    /// Reads the whole bucket and follows its changes until the watch fails.
    async fn read(&self) {
        let mut reconnected = self.bucket.client.reconnected();
        let outcome = tokio::select! {
            outcome = self.follow() => outcome,
            _ = reconnected.changed() => Ok(()),
        };
        self.table.unsync();
        if let Err(error) = outcome {
            tracing::info!(error = %ErrorChain(&error), "watch of the routes failed; the whole bucket is read again");
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    async fn follow(&self) -> Result<(), BusError> {
        let store = self.bucket.store().await?;
        let stored = store
            .status()
            .await
            .map_err(BusError::nats("reading the route bucket"))?
            .values();
        let mut watch = store
            .watch_with_history(">")
            .await
            .map_err(BusError::nats("watching the route bucket"))?;
        let mut fresh: Option<HashMap<EnvironmentId, Route>> = Some(HashMap::new());
        if stored == 0 {
            self.table.replace(fresh.take().unwrap_or_default());
        }
        loop {
            let next = match &fresh {
                // A counted route may be removed before it is read. Then the last one never
                // arrives, and the deadline restarts the read.
                Some(_) => tokio::time::timeout(READ_DEADLINE, watch.next())
                    .await
                    .map_err(|_| BusError::Deadline(READ_DEADLINE))?,
                None => watch.next().await,
            };
            let entry = next
                .ok_or(BusError::Disconnected)?
                .map_err(BusError::nats("watching the route bucket"))?;
            match &mut fresh {
                Some(routes) => {
                    match route(&entry) {
                        Some((id, Some(route))) => {
                            routes.insert(id, route);
                        }
                        Some((id, None)) => {
                            routes.remove(&id);
                        }
                        None => {}
                    }
                    if entry.delta == 0 {
                        self.table.replace(fresh.take().unwrap_or_default());
                    }
                }
                None => match route(&entry) {
                    Some((id, Some(route))) => self.table.insert(id, route),
                    Some((id, None)) => self.table.remove(&id),
                    None => {}
                },
            }
        }
    }
}

/// Decodes an entry: an environment and its route, or `None` when the route was deleted.
fn route(entry: &Entry) -> Option<(EnvironmentId, Option<Route>)> {
    let Ok(id) = entry.key.parse::<EnvironmentId>() else {
        tracing::warn!(
            key = entry.key,
            "route ignored: its key is not an environment id"
        );
        return None;
    };
    let route = match entry.operation {
        Operation::Put => serde_json::from_slice(&entry.value),
        Operation::Delete | Operation::Purge => Ok(None),
    };
    let route = route.unwrap_or_else(|error| {
        // Callers ask the scheduler when there is no route.
        tracing::error!(error = %ErrorChain(&error), environment.id = %id, "route not decoded");
        None
    });
    Some((id, route))
}
