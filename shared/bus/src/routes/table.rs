//! The routes in memory, and notifications of their changes.
//!
//! * I1. A watch misses no change: a change is written before its watches are notified, and a
//!   watch is registered before its caller reads the table.
//! * I2. A change wakes the watches of its own environment alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agentbox_contracts::environment::Route;
use agentbox_contracts::ids::EnvironmentId;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

/// The routes in memory. Clones share them.
#[derive(Clone, Default)]
pub struct RouteTable(Arc<Shared>);

#[derive(Default)]
struct Shared {
    routes: RwLock<HashMap<EnvironmentId, Route>>,
    is_synced: AtomicBool,
    watches: Mutex<HashMap<EnvironmentId, watch::Sender<()>>>,
}

impl RouteTable {
    #[must_use]
    pub fn get(&self, id: &EnvironmentId) -> Option<Route> {
        self.0.routes.read().get(id).cloned()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.routes.read().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the table has everything that was stored when the mirror began to read.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.0.is_synced.load(Ordering::Acquire)
    }

    /// Watches the route of one environment, from now on.
    #[must_use]
    pub fn watch(&self, id: &EnvironmentId) -> RouteWatch {
        let mut watches = self.0.watches.lock();
        let sender = watches.entry(id.clone()).or_default();
        RouteWatch {
            table: self.clone(),
            id: id.clone(),
            changes: sender.subscribe(),
        }
    }

    pub fn insert(&self, id: EnvironmentId, route: Route) {
        self.0.routes.write().insert(id.clone(), route);
        self.notify(&id);
    }

    /// Removes a route. Notifies the watches also when there was no route: an environment that
    /// ended before it ran has none.
    pub fn remove(&self, id: &EnvironmentId) {
        self.0.routes.write().remove(id);
        self.notify(id);
    }

    /// Replaces all routes. The table is synced afterwards.
    pub fn replace(&self, routes: HashMap<EnvironmentId, Route>) {
        *self.0.routes.write() = routes;
        self.0.is_synced.store(true, Ordering::Release);
        for sender in self.0.watches.lock().values() {
            sender.send_replace(());
        }
    }

    pub(super) fn unsync(&self) {
        self.0.is_synced.store(false, Ordering::Release);
    }

    fn notify(&self, id: &EnvironmentId) {
        if let Some(sender) = self.0.watches.lock().get(id) {
            sender.send_replace(());
        }
    }
}

/// Notifications of one environment's route. Cancelling a wait loses none.
pub struct RouteWatch {
    table: RouteTable,
    id: EnvironmentId,
    changes: watch::Receiver<()>,
}

impl RouteWatch {
    /// Waits for a change since the watch began, or since the last wait. May also resolve
    /// without a change, after the mirror has read everything again.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The table, which this watch holds, keeps the sender.
            std::future::pending().await
        }
    }

    /// Waits until the table is synced and `condition` is true of its route, or of `None`.
    pub async fn wait_for(&mut self, condition: impl Fn(Option<&Route>) -> bool) {
        while !(self.table.is_synced() && condition(self.table.get(&self.id).as_ref())) {
            self.changed().await;
        }
    }
}

impl Drop for RouteWatch {
    fn drop(&mut self) {
        let mut watches = self.table.0.watches.lock();
        let is_last = watches
            .get(&self.id)
            .is_some_and(|sender| sender.receiver_count() == 1);
        if is_last {
            watches.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::environment::Status;
    use agentbox_contracts::ids::UserId;
    use futures::FutureExt;

    use super::*;

    fn route(status: Status) -> Route {
        Route {
            owner: UserId::random(),
            status,
            cluster: "local".to_owned(),
            address: None,
        }
    }

    fn synced() -> RouteTable {
        let table = RouteTable::default();
        table.replace(HashMap::new());
        table
    }

    #[test]
    fn watch_resolves_for_changes_of_its_own_environment() {
        let table = synced();
        let id = EnvironmentId::random();
        let mut watch = table.watch(&id);
        table.insert(EnvironmentId::random(), route(Status::Running));
        assert!(watch.changed().now_or_never().is_none());
        table.insert(id.clone(), route(Status::Running));
        assert!(watch.changed().now_or_never().is_some());
        assert!(watch.changed().now_or_never().is_none());
        table.remove(&id);
        table.remove(&id);
        assert!(watch.changed().now_or_never().is_some());
    }

    #[test]
    fn wait_for_needs_a_synced_table() {
        let table = RouteTable::default();
        let id = EnvironmentId::random();
        let mut watch = table.watch(&id);
        assert!(
            watch
                .wait_for(|route| route.is_none())
                .now_or_never()
                .is_none()
        );
        table.replace(HashMap::new());
        assert!(
            watch
                .wait_for(|route| route.is_none())
                .now_or_never()
                .is_some()
        );
        let is_running =
            |route: Option<&Route>| route.is_some_and(|route| route.status == Status::Running);
        assert!(watch.wait_for(is_running).now_or_never().is_none());
        table.insert(id, route(Status::Running));
        assert!(watch.wait_for(is_running).now_or_never().is_some());
    }

    #[test]
    fn dropped_watches_leave_nothing_behind() {
        let table = synced();
        let id = EnvironmentId::random();
        let (first, second) = (table.watch(&id), table.watch(&id));
        drop(first);
        assert_eq!(table.0.watches.lock().len(), 1);
        drop(second);
        assert!(table.0.watches.lock().is_empty());
    }
}
