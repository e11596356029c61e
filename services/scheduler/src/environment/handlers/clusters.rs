//! The RPCs about clusters: their state, cordon and drain.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::cluster::rpc::{ClusterRequest, DrainClusterRequest, ListClustersReply};
use agentbox_contracts::cluster::{self, ClusterCapacity, EnvironmentCounts, MAX_DRAIN_TIMEOUT_S};
use agentbox_contracts::error::Error;

use super::Environments;
use crate::cluster::registry::Cluster;
use crate::cluster::scheduling::Scheduling;
use crate::environment::store::StoreError;

fn body(cluster: &Cluster, scheduling: Scheduling, counts: EnvironmentCounts) -> cluster::Cluster {
    let capacity = cluster.capacity.current();
    cluster::Cluster {
        name: cluster.name.clone(),
        driver: cluster.driver.to_string(),
        labels: cluster.labels.clone(),
        state: scheduling.state(counts.total()),
        drain_deadline: scheduling.drain_deadline(),
        environments: counts,
        version: capacity
            .as_ref()
            .map(|capacity| capacity.version.clone())
            .unwrap_or_default(),
        capacity: capacity.map(|capacity| ClusterCapacity {
            nodes: capacity.nodes,
            total_cpu_milli: capacity.total_cpu.0,
            total_memory_bytes: capacity.total_memory.0,
            available_cpu_milli: capacity.available_cpu.0,
            available_memory_bytes: capacity.available_memory.0,
        }),
    }
}

impl Environments {
    /// Reads from the database which clusters take new environments. Placement uses what was read
    /// last.
    ///
    /// # Errors
    /// When the database fails: what was read before stays in effect.
    pub async fn refresh_scheduling(&self) -> Result<BTreeMap<String, Scheduling>, StoreError> {
        let inner = self.inner();
        let _reading = inner.scheduling.lock().await;
        let schedulings = inner.store.schedulings().await?;
        for cluster in inner.clusters.iter() {
            let scheduling = schedulings.get(&cluster.name).copied();
            cluster.set_scheduling(scheduling.unwrap_or_default());
        }
        Ok(schedulings)
    }

    /// Returns the clusters of the configuration, by their names.
    ///
    /// # Errors
    /// `Unavailable` without a database.
    pub async fn list_clusters(&self) -> Result<ListClustersReply, Error> {
        let schedulings = self.refresh_scheduling().await?;
        let inner = self.inner();
        let counts = inner.store.environments_by_cluster().await?;
        let clusters = inner.clusters.iter().map(|cluster| {
            body(
                cluster,
                schedulings.get(&cluster.name).copied().unwrap_or_default(),
                counts.get(&cluster.name).copied().unwrap_or_default(),
            )
        });
        Ok(ListClustersReply {
            clusters: clusters.collect(),
        })
    }

    /// Makes a cluster take no new environments. A drain that had begun ends nothing any more.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` without a database.
    pub async fn cordon_cluster(&self, request: ClusterRequest) -> Result<cluster::Cluster, Error> {
        self.require_cluster(&request.cluster)?;
        let inner = self.inner();
        let id = inner.store.cordon(&request.cluster, None).await?;
        inner.outbox.wake(&id);
        tracing::info!(cluster = request.cluster, "cluster cordoned");
        self.cluster(&request.cluster).await
    }

    /// Makes a cluster take new environments.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` without a database.
    pub async fn uncordon_cluster(
        &self,
        request: ClusterRequest,
    ) -> Result<cluster::Cluster, Error> {
        self.require_cluster(&request.cluster)?;
        let inner = self.inner();
        if let Some(id) = inner.store.uncordon(&request.cluster).await? {
            inner.outbox.wake(&id);
            tracing::info!(cluster = request.cluster, "cluster uncordoned");
        }
        self.cluster(&request.cluster).await
    }

    /// Makes a cluster take no new environments, and ends those that are left after a time.
    ///
    /// # Errors
    /// `Validation` for the time; `NotFound`; `Unavailable` without a database.
    pub async fn drain_cluster(
        &self,
        request: DrainClusterRequest,
    ) -> Result<cluster::Cluster, Error> {
        let DrainClusterRequest { cluster, timeout_s } = request;
        self.require_cluster(&cluster)?;
        if timeout_s > MAX_DRAIN_TIMEOUT_S {
            return Err(Error::field(
                "timeout",
                format_args!(
                    "must be between 0 and {MAX_DRAIN_TIMEOUT_S} seconds, got {timeout_s}"
                ),
            ));
        }
        let inner = self.inner();
        let within = Duration::from_secs(timeout_s);
        let id = inner.store.cordon(&cluster, Some(within)).await?;
        inner.outbox.wake(&id);
        tracing::info!(cluster, timeout_s, "drain of cluster started");
        self.cluster(&cluster).await
    }

    fn require_cluster(&self, name: &str) -> Result<(), Error> {
        match self.inner().clusters.get(name) {
            Some(_) => Ok(()),
            None => Err(Error::not_found("cluster")),
        }
    }

    /// The present state of one cluster, which this replica's placement uses from now on.
    async fn cluster(&self, name: &str) -> Result<cluster::Cluster, Error> {
        let clusters = self.list_clusters().await?.clusters;
        clusters
            .into_iter()
            .find(|cluster| cluster.name == name)
            .ok_or_else(|| Error::not_found("cluster"))
    }
}
