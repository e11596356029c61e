//! Every cluster of the deployment by its name, connected or not yet.
//!
//! * I1. The set of clusters is fixed at start; a driver appears once and stays.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agentbox_clusters::DriverKind;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_runtime::Runtime;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::cluster::capacity::CapacityCache;
use crate::cluster::config::Overcommit;

/// One cluster.
pub struct Cluster {
    pub name: String,
    pub driver: DriverKind,
    /// Matched against a request's `node_selector` before the nodes' own.
    pub labels: BTreeMap<String, String>,
    pub overcommit: Overcommit,
    pub capacity: CapacityCache,
    runtime: OnceLock<Arc<dyn Runtime>>,
}

impl Cluster {
    #[must_use]
    pub fn new(
        name: &str,
        driver: DriverKind,
        labels: BTreeMap<String, String>,
        overcommit: Overcommit,
    ) -> Self {
        Self {
            name: name.to_owned(),
            driver,
            labels,
            overcommit,
            capacity: CapacityCache::default(),
            runtime: OnceLock::new(),
        }
    }

    /// The driver has been connected. A second time changes nothing.
    pub fn connected(&self, runtime: Arc<dyn Runtime>) {
        let _ = self.runtime.set(runtime);
    }

    /// The driver, once it is connected.
    #[must_use]
    pub fn runtime(&self) -> Option<&Arc<dyn Runtime>> {
        self.runtime.get()
    }

    /// Whether a box's address is what users reach it by; else it is a name.
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

    /// Returns when one of those that are away answers, or after so long; at once when none
    /// is away.
    pub async fn wait_for_another(&self, within: Duration) {
        let away = self.iter().filter(|one| one.capacity.current().is_none());
        let mut answers: FuturesUnordered<_> = away.map(|one| one.capacity.known()).collect();
        let _ = tokio::time::timeout(within, answers.next()).await;
    }
}

/// For when no cluster can be asked.
#[must_use]
pub fn no_cluster() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "no cluster can be reached; try again",
    )
}
