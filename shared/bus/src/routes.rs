//! Where each environment runs: written by the scheduler, mirrored by who needs it on a
//! hot path.
//!
//! The mirror is a hint: what it says may lag by a moment, so a "no" of its is checked
//! against the scheduler before a caller is told so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use agentbox_contracts::environment::Route;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects::ROUTES_BUCKET;
use async_nats::jetstream::kv::{Operation, Store};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::connection::Bus;
use crate::error::BusError;

/// Between two attempts to watch the bucket.
const RETRY: Duration = Duration::from_millis(500);

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
            .purge(id.as_str())
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
        loop {
            let outcome = tokio::select! {
                () = shutdown.cancelled() => return,
                outcome = self.follow() => outcome,
            };
            self.synced.store(false, Ordering::Release);
            if let Err(error) = outcome {
                tracing::info!(%error, "the route mirror starts again");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
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
        while let Some(entry) = watch.next().await {
            let entry = entry.map_err(BusError::nats("watching the route bucket"))?;
            let change = entry.key.parse::<EnvironmentId>().ok().map(|id| {
                let route = match entry.operation {
                    Operation::Put => serde_json::from_slice(&entry.value).ok(),
                    Operation::Delete | Operation::Purge => None,
                };
                (id, route)
            });
            let apply = |routes: &mut HashMap<EnvironmentId, Route>| match change {
                Some((id, Some(route))) => {
                    routes.insert(id, route);
                }
                Some((id, None)) => {
                    routes.remove(&id);
                }
                None => {}
            };
            match &mut fresh {
                Some(routes) => {
                    apply(routes);
                    if entry.delta == 0 {
                        self.replace(fresh.take().unwrap_or_default());
                    }
                }
                None => apply(&mut self.routes.write().unwrap_or_else(PoisonError::into_inner)),
            }
        }
        Err(BusError::Disconnected)
    }

    fn replace(&self, routes: HashMap<EnvironmentId, Route>) {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
        self.synced.store(true, Ordering::Release);
    }
}
