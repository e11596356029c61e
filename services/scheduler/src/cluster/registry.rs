//! Every cluster of the deployment by its name, connected or not.
//!
//! * I1. The set of clusters is fixed at start; a driver is set once and stays.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agentbox_clusters::DriverKind;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_runtime::Runtime;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;

use crate::cluster::capacity::CapacityCache;
use crate::cluster::config::Overcommit;
use crate::cluster::registries::AllowedRegistries;
use crate::cluster::scheduling::Scheduling;

/// One cluster.
pub struct Cluster {
    pub name: String,
    pub driver: DriverKind,
    /// Matched against a request's `node_selector` before the labels of the nodes.
    pub labels: BTreeMap<String, String>,
    pub overcommit: Overcommit,
    pub registries: AllowedRegistries,
    pub capacity: CapacityCache,
    scheduling: watch::Sender<Scheduling>,
    runtime: OnceLock<Arc<dyn Runtime>>,
}

impl Cluster {
    #[must_use]
    pub fn new(
        name: &str,
        driver: DriverKind,
        labels: BTreeMap<String, String>,
        overcommit: Overcommit,
        registries: AllowedRegistries,
    ) -> Self {
        Self {
            name: name.to_owned(),
            driver,
            labels,
            overcommit,
            registries,
            capacity: CapacityCache::default(),
            scheduling: watch::Sender::default(),
            runtime: OnceLock::new(),
        }
    }

    /// Sets the connected driver. A second call changes nothing.
    pub fn set_runtime(&self, runtime: Arc<dyn Runtime>) {
        let _ = self.runtime.set(runtime);
    }

    /// The driver, once it is connected.
    #[must_use]
    pub fn runtime(&self) -> Option<&Arc<dyn Runtime>> {
        self.runtime.get()
    }

    /// Whether it takes new environments, as this replica last read it.
    #[must_use]
    pub fn scheduling(&self) -> Scheduling {
        *self.scheduling.borrow()
    }

    /// Sets what [`Self::scheduling`] returns.
    pub fn set_scheduling(&self, scheduling: Scheduling) {
        self.scheduling.send_replace(scheduling);
    }

    /// Whether the endpoint of a box is its address. Otherwise it is a name.
    #[must_use]
    pub fn endpoint_is_address(&self) -> bool {
        self.driver == DriverKind::Containerd
    }
}

/// All clusters.
#[derive(Clone, Default)]
pub struct Clusters(Arc<BTreeMap<String, Arc<Cluster>>>);

impl Clusters {
    #[must_use]
    pub fn new(clusters: impl IntoIterator<Item = Cluster>) -> Self {
        Self(Arc::new(
            clusters
                .into_iter()
                .map(|cluster| (cluster.name.clone(), Arc::new(cluster)))
                .collect(),
        ))
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.0.values()
    }

    /// Returns when one of the unreachable clusters answers, or after `timeout`; at once when
    /// none is unreachable.
    pub async fn wait_for_unreachable(&self, timeout: Duration) {
        let unreachable = self
            .iter()
            .filter(|cluster| cluster.capacity.current().is_none());
        let mut answers: FuturesUnordered<_> = unreachable
            .map(|cluster| cluster.capacity.wait_known())
            .collect();
        let _ = tokio::time::timeout(timeout, answers.next()).await;
    }
}

/// The error when no cluster is reachable.
#[must_use]
pub fn no_reachable_cluster() -> Error {
    Error::new(ErrorCode::Unavailable, "no cluster is reachable; try again")
}
