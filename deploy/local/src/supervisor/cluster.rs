//! One cluster of the instance: its directories, its processes, and its removal.

use std::time::Duration;

use agentbox_testing::cluster::{Cluster, Endpoint, Runtime};
use agentbox_testing::paths::{Layout, cache_directory};
use agentbox_testing::plan::Plan;

use super::cluster_processes::ClusterProcesses;
use super::state_file::StateFile;
use super::{SuperviseError, components, kubernetes};
use crate::cleanup;
use crate::cluster_paths::ClusterPaths;
use crate::containerd::cri::Cri;
use crate::image::Images;
use crate::ports::Ports;
use crate::slot::{Slot, SlotError};

/// The deadline of the removal of all boxes. [`cleanup`] removes what is left after it.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(60);

pub(super) struct SupervisedCluster {
    kind: Runtime,
    name: &'static str,
    paths: ClusterPaths,
    /// Keeps a test's slot locked until everything in it is removed.
    slot: Option<Slot>,
    processes: ClusterProcesses,
    /// Keeps the port of the registry proxy reserved while it restarts.
    ports: Ports,
    state_file: StateFile,
}

impl SupervisedCluster {
    /// The clusters of the plan, each with directories of its own.
    pub(super) fn all(
        layout: &Layout,
        plan: &Plan,
        state_file: &StateFile,
    ) -> Result<Vec<Self>, SuperviseError> {
        let kinds = plan.components.clusters();
        kinds
            .iter()
            .map(|&kind| {
                let (paths, slot) = match &plan.deployment {
                    Some(instance) => (ClusterPaths::of_instance(layout, instance, kind), None),
                    None => {
                        let name = ClusterPaths::directory_name(kind);
                        let slot = Slot::take(&cache_directory(), name)?;
                        (slot.paths.clone(), Some(slot))
                    }
                };
                Ok(Self {
                    kind,
                    name: kind.cluster_name(plan.cluster_count()),
                    paths,
                    slot,
                    processes: ClusterProcesses::new(state_file),
                    ports: Ports::new()?,
                    state_file: state_file.clone(),
                })
            })
            .collect()
    }

    /// Removes what a killed supervisor left in the directories, and records the slot.
    pub(super) async fn prepare(&self) -> Result<(), SlotError> {
        cleanup::remove(&self.paths).await;
        self.slot.as_ref().map_or(Ok(()), Slot::record)
    }

    pub(super) async fn start(
        &mut self,
        layout: &Layout,
        plan: &Plan,
        images: &Images,
    ) -> Result<Cluster, SuperviseError> {
        let (processes, paths) = (&mut self.processes, self.paths.clone());
        let endpoint = match self.kind {
            Runtime::Containerd => {
                let group = &mut processes.containerd;
                let ports = &mut self.ports;
                let proxy = components::registry_proxy(layout, plan, group, ports).await?;
                let started =
                    components::containerd(layout, plan, group, paths, images, proxy).await?;
                Endpoint::Containerd {
                    containerd: started.endpoint,
                }
            }
            Runtime::Kubernetes => {
                let started = kubernetes::start(layout, plan, processes, paths, images).await?;
                Endpoint::Kubernetes {
                    kubernetes: started.endpoint,
                }
            }
        };
        Ok(Cluster::new(self.name, endpoint))
    }

    /// Removes the boxes, stops the processes, and removes everything but the images.
    pub(super) async fn stop(&mut self) {
        let processes = &mut self.processes;
        processes.kubelet.stop().await;
        if processes.containerd.is_running() {
            let removal = async { Cri::connect(&self.paths.socket()).await?.remove_all().await };
            match tokio::time::timeout(REMOVAL_DEADLINE, removal).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self
                    .state_file
                    .log_step(&format!("boxes were not removed: {error}")),
                Err(_) => self.state_file.log_step(&format!(
                    "boxes were not removed within {REMOVAL_DEADLINE:?}"
                )),
            }
        }
        tokio::join!(processes.containerd.stop(), processes.control_plane.stop());
        cleanup::remove(&self.paths).await;
    }
}
