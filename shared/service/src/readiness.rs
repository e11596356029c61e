//! Whether this replica is ready to receive work, and the reasons when it is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::Bus;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// How often the connection of the bus is checked.
const BUS_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The state of each component by name. Clones share it.
#[derive(Clone, Default)]
pub struct Readiness {
    components: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

/// One part of a service that can be ready or not.
#[derive(Clone)]
pub struct Component {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.components.lock()
    }

    /// Adds a component that must be ready before the service is. It is not ready at first.
    #[must_use]
    pub fn component(&self, name: &'static str) -> Component {
        self.lock().insert(name, Some("not started".to_owned()));
        Component {
            name,
            readiness: self.clone(),
        }
    }

    /// Makes the replica not ready, permanently.
    pub(crate) fn stop(&self) {
        self.lock().insert("shutdown", Some("stopping".to_owned()));
    }

    /// The components that are not ready, with the reasons. Empty when all are ready.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<&'static str, String> {
        self.lock()
            .iter()
            .filter_map(|(name, reason)| reason.clone().map(|reason| (*name, reason)))
            .collect()
    }
}

impl Component {
    pub fn ready(&self) {
        self.set(None);
    }

    pub fn not_ready(&self, why: impl Into<String>) {
        self.set(Some(why.into()));
    }

    fn set(&self, state: Option<String>) {
        let changed = {
            let mut components = self.readiness.lock();
            components.insert(self.name, state.clone()) != Some(state.clone())
        };
        if changed {
            match state {
                None => tracing::info!(component = self.name, "ready"),
                Some(why) => tracing::info!(component = self.name, why, "not ready"),
            }
        }
    }
}

/// Reports whether the bus is connected, until `shutdown`.
pub(crate) async fn watch_bus(
    bus: Bus,
    component: Component,
    shutdown: CancellationToken,
) -> Result<(), anyhow::Error> {
    let mut tick = tokio::time::interval(BUS_CHECK_INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        if bus.is_connected() {
            component.ready();
        } else {
            component.not_ready("NATS is not connected");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_needs_every_component_and_ends_at_stop() {
        let readiness = Readiness::new();
        let database = readiness.component("database");
        assert!(readiness.reasons().contains_key("database"));
        database.ready();
        assert!(readiness.reasons().is_empty());
        database.not_ready("gone");
        assert_eq!(readiness.reasons()["database"], "gone");
        database.ready();
        readiness.stop();
        assert!(readiness.reasons().contains_key("shutdown"));
    }
}
