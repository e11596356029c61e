//! Where each environment runs: written by the scheduler, mirrored by who needs it on a
//! hot path.
//!
//! The mirror is a hint: what it says may lag by a moment, so a "no" of its is checked
//! against the scheduler before a caller is told so.
//!
//! * I1. A deleted route leaves a marker for [`MARKER_TTL`], for the mirrors, and then
//!   nothing: the bucket does not grow with every environment there ever was.
//! * I2. A mirror reads everything again whenever its connection was made again: what was
//!   deleted meanwhile may have left no marker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use agentbox_contracts::environment::Route;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects::ROUTES_BUCKET;
use async_nats::jetstream::kv::{Entry, Operation, Store};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::connection::Bus;
use crate::error::BusError;

/// Between two attempts to watch the bucket.
const RETRY: Duration = Duration::from_millis(500);
/// Longer than any watch lags behind.
pub(crate) const MARKER_TTL: Duration = Duration::from_secs(60 * 60);
/// While the stored routes are read the next comes within this time.
const READ_DEADLINE: Duration = Duration::from_secs(2);

impl Bus {
    async fn routes(&self) -> Result<&Store, BusError> {
        self.routes_cell()
            .get_or_try_init(|| self.jetstream().get_key_value(ROUTES_BUCKET))
            .await
            .map_err(BusError::nats("opening the route bucket"))
    }

    /// # Errors
    /// When JetStream has not acknowledged it.
    pub async fn put_route(&self, id: &EnvironmentId, route: &Route) -> Result<(), BusError> {
        let body = serde_json::to_vec(route).map_err(|e| BusError::Malformed(e.to_string()))?;
        self.routes()
            .await?
            .put(id.as_str(), body.into())
            .await
            .map(|_| ())
            .map_err(BusError::nats("writing a route"))
    }

    /// # Errors
    /// When JetStream has not acknowledged it.
    pub async fn delete_route(&self, id: &EnvironmentId) -> Result<(), BusError> {
        self.routes()
            .await?
            .purge_with_ttl(id.as_str(), MARKER_TTL)
            .await
            .map_err(BusError::nats("deleting a route"))
    }

    /// A mirror that is kept by [`RouteMirror::run`].
    #[must_use]
    pub fn mirror_routes(&self) -> RouteMirror {
        RouteMirror {
            bus: self.clone(),
            routes: Arc::default(),
            synced: Arc::default(),
        }
    }
}

/// The routes in memory. Clones share them.
#[derive(Clone)]
pub struct RouteMirror {
    bus: Bus,
    routes: Arc<RwLock<HashMap<EnvironmentId, Route>>>,
    synced: Arc<AtomicBool>,
}

impl RouteMirror {
    #[must_use]
    pub fn get(&self, id: &EnvironmentId) -> Option<Route> {
        self.routes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.routes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all that was stored when the watch began has been read.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Keeps the mirror until `shutdown`; reads everything again after the watch broke.
    pub async fn run(&self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(self.read()).await.is_some() {}
    }

    /// One reading of the whole bucket and what follows, until that breaks.
    async fn read(&self) {
        let mut reconnected = self.bus.reconnected();
        let outcome = tokio::select! {
            outcome = self.follow() => outcome,
            _ = reconnected.changed() => Ok(()),
        };
        self.synced.store(false, Ordering::Release);
        if let Err(error) = outcome {
            tracing::info!(%error, "the route mirror starts again");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&self) -> Result<(), BusError> {
        let store = self.bus.routes().await?;
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
            self.replace(fresh.take().unwrap_or_default());
        }
        loop {
            let next = match &fresh {
                // What was counted may be gone before it is read, and then no last one
                // comes: the reading begins again.
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
                    apply(routes, &entry);
                    if entry.delta == 0 {
                        self.replace(fresh.take().unwrap_or_default());
                    }
                }
                None => {
                    let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
                    apply(&mut routes, &entry);
                }
            }
        }
    }

    fn replace(&self, routes: HashMap<EnvironmentId, Route>) {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
        self.synced.store(true, Ordering::Release);
    }
}

fn apply(routes: &mut HashMap<EnvironmentId, Route>, entry: &Entry) {
    let Ok(id) = entry.key.parse::<EnvironmentId>() else {
        tracing::warn!(key = entry.key, "a route of no environment");
        return;
    };
    let route = match entry.operation {
        Operation::Put => serde_json::from_slice(&entry.value).map(Some),
        Operation::Delete | Operation::Purge => Ok(None),
    };
    match route {
        Ok(Some(route)) => {
            routes.insert(id, route);
        }
        Ok(None) => {
            routes.remove(&id);
        }
        Err(error) => {
            // Who asks is sent to the scheduler.
            routes.remove(&id);
            tracing::error!(%error, environment = %id, "a route cannot be read");
        }
    }
}
