//! One cluster of the instance: its place on this machine, its programs, and its end.

use std::time::Duration;

use super::board::Board;
use super::layer::Layer;
use super::{SuperviseError, kubernetes, parts};
use crate::cluster::{self, Endpoint, Runtime};
use crate::containerd::cri::Cri;
use crate::containerd::slot::Slot;
use crate::containerd::{ContainerdError, Paths, leftovers};
use crate::image::Images;
use crate::plan::{Layout, Plan, cache_directory};

/// How long removing all boxes may take; what it misses, [`leftovers`] finds.
const REMOVAL: Duration = Duration::from_secs(60);

pub(super) struct Cluster {
    kind: Runtime,
    name: &'static str,
    paths: Paths,
    /// Keeps a test's place locked until everything in it is gone.
    slot: Option<Slot>,
    layers: Layers,
    board: Board,
}

/// A cluster's programs, by when they end.
pub(super) struct Layers {
    /// First: it would make again what is removed.
    pub(super) kubelet: Layer,
    /// Then containerd, and the node that it runs in, if it is one.
    pub(super) containerd: Layer,
    /// The rest, which containerd asks when it removes a Pod's network.
    pub(super) control: Layer,
}

impl Cluster {
    /// Every cluster of the plan, each in a place of its own.
    pub(super) fn all(
        layout: &Layout,
        plan: &Plan,
        board: &Board,
    ) -> Result<Vec<Self>, ContainerdError> {
        let kinds = plan.parts.clusters();
        kinds
            .iter()
            .map(|&kind| {
                let (paths, slot) = match &plan.deployment {
                    Some(instance) => (layout.cluster(instance, kind), None),
                    None => {
                        let slot = Slot::take(&cache_directory(), kind.as_str())?;
                        (slot.paths.clone(), Some(slot))
                    }
                };
                let layer = || Layer::new(board.clone());
                Ok(Self {
                    kind,
                    name: kind.name(plan.clusters()),
                    paths,
                    slot,
                    layers: Layers {
                        kubelet: layer(),
                        containerd: layer(),
                        control: layer(),
                    },
                    board: board.clone(),
                })
            })
            .collect()
    }

    /// Removes what a killed run left in its place, and takes it.
    pub(super) async fn clear(&self) -> Result<(), ContainerdError> {
        leftovers::remove(&self.paths).await;
        self.slot.as_ref().map_or(Ok(()), Slot::occupy)
    }

    pub(super) async fn start(
        &mut self,
        layout: &Layout,
        plan: &Plan,
        images: &Images,
    ) -> Result<cluster::Cluster, SuperviseError> {
        let (layers, paths) = (&mut self.layers, self.paths.clone());
        let endpoint = match self.kind {
            Runtime::Containerd => {
                let layer = &mut layers.containerd;
                let started = parts::containerd(layout, plan, layer, paths, images).await?;
                Endpoint::Containerd {
                    containerd: started.endpoint,
                }
            }
            Runtime::Kubernetes => {
                let started = kubernetes::start(layout, plan, layers, paths, images).await?;
                Endpoint::Kubernetes {
                    kubernetes: started.endpoint,
                }
            }
        };
        Ok(cluster::Cluster::new(self.name, endpoint))
    }

    /// Ends its boxes and programs, and removes everything of it but the images.
    pub(super) async fn end(&mut self) {
        let layers = &mut self.layers;
        layers.kubelet.end().await;
        if layers.containerd.is_running() {
            let removal = async { Cri::connect(&self.paths.socket()).await?.remove_all().await };
            match tokio::time::timeout(REMOVAL, removal).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.board.say(&format!("removing boxes: {error}")),
                Err(_) => self
                    .board
                    .say(&format!("removing boxes took more than {REMOVAL:?}")),
            }
        }
        tokio::join!(layers.containerd.end(), layers.control.end());
        leftovers::remove(&self.paths).await;
    }
}
