//! Observes boxes: combines containerd's objects with the recorded state.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{Observed, RuntimeError};
use chrono::{DateTime, Utc};
use k8s_cri::v1::{Container, ContainerState, PodSandbox};

use crate::box_state::BoxState;
use crate::context::Context;
use crate::phase::{self, Observation, ObservedContainer};
use crate::{cgroup, labels, output};

/// containerd's objects of one box. It has several sandboxes only after a killed `ensure`.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub sandboxes: Vec<PodSandbox>,
    pub containers: Vec<Container>,
}

impl Objects {
    /// The newest container, which decides the phase.
    pub fn container(&self) -> Option<&Container> {
        self.containers
            .iter()
            .max_by_key(|container| container.created_at)
    }

    pub fn is_running(&self) -> bool {
        self.containers
            .iter()
            .any(|c| c.state() == ContainerState::ContainerRunning)
    }

    /// The highest generation in the labels.
    pub fn generation(&self) -> Option<i64> {
        let generation =
            |labels: &HashMap<String, String>| labels.get(labels::GENERATION)?.parse().ok();
        self.sandboxes
            .iter()
            .filter_map(|sandbox| generation(&sandbox.labels))
            .max()
    }

    fn created_at(&self) -> Option<DateTime<Utc>> {
        self.sandboxes
            .iter()
            .map(|s| DateTime::from_timestamp_nanos(s.created_at))
            .min()
    }
}

fn id_of(labels: &HashMap<String, String>) -> Option<EnvironmentId> {
    labels.get(labels::BOX)?.parse().ok()
}

impl Context {
    pub async fn objects(&self, id: &EnvironmentId) -> Result<Objects, RuntimeError> {
        let selector = labels::box_labels(&self.config.deployment, id);
        let (sandboxes, containers) = tokio::try_join!(
            self.cri.sandboxes(selector.clone()),
            self.cri.containers(selector),
        )?;
        Ok(Objects {
            sandboxes,
            containers,
        })
    }

    pub async fn all_objects(&self) -> Result<BTreeMap<EnvironmentId, Objects>, RuntimeError> {
        let selector = labels::deployment_labels(&self.config.deployment);
        let (sandboxes, containers) = tokio::try_join!(
            self.cri.sandboxes(selector.clone()),
            self.cri.containers(selector),
        )?;
        let mut all: BTreeMap<EnvironmentId, Objects> = BTreeMap::new();
        for sandbox in sandboxes {
            if let Some(id) = id_of(&sandbox.labels) {
                all.entry(id).or_default().sandboxes.push(sandbox);
            }
        }
        for container in containers {
            if let Some(id) = id_of(&container.labels) {
                all.entry(id).or_default().containers.push(container);
            }
        }
        Ok(all)
    }

    /// Collects the inputs of the phase, from objects and state that were just read.
    async fn observation(
        &self,
        id: &EnvironmentId,
        objects: &Objects,
        state: Option<BoxState>,
    ) -> Result<Observation, RuntimeError> {
        let container = match objects.container() {
            None => ObservedContainer::Absent,
            Some(container) if container.state() == ContainerState::ContainerExited => {
                match self.cri.container_status(&container.id).await? {
                    Some(status) => phase::from_status(status),
                    None => ObservedContainer::Absent,
                }
            }
            Some(container) => phase::from_listing(container.state()),
        };
        let termination = match container {
            ObservedContainer::Exited(_) => output::termination(&self.output_directory(id)),
            _ => None,
        };
        let out_of_memory = matches!(container, ObservedContainer::Exited(_))
            && termination.is_none()
            && cgroup::memory_limit_was_reached(&self.config.deployment, id);
        Ok(Observation {
            state,
            container,
            termination,
            out_of_memory,
        })
    }

    pub async fn observed(
        &self,
        id: &EnvironmentId,
        objects: &Objects,
        state: Option<BoxState>,
    ) -> Result<Observed, RuntimeError> {
        let generation = state
            .as_ref()
            .map(|state| state.generation)
            .or(objects.generation())
            .unwrap_or(0);
        let created_at = state
            .as_ref()
            .map(|state| state.created_at)
            .or(objects.created_at());
        let observation = self.observation(id, objects, state).await?;
        Ok(Observed {
            id: id.clone(),
            generation,
            phase: phase::phase(&observation),
            created_at: created_at.unwrap_or_default(),
        })
    }

    pub async fn get(&self, id: &EnvironmentId) -> Result<Option<Observed>, RuntimeError> {
        let objects = self.objects(id).await?;
        let state = self.states.load(id).await?;
        if state.is_none() && objects.sandboxes.is_empty() && objects.containers.is_empty() {
            return Ok(None);
        }
        self.observed(id, &objects, state).await.map(Some)
    }

    /// Every box that has an object in containerd, a state file, a control group or firewall
    /// rules.
    pub async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        let mut all = self.all_objects().await?;
        let others: BTreeSet<EnvironmentId> = self
            .states
            .ids()
            .await?
            .into_iter()
            .chain(cgroup::boxes(&self.config.deployment))
            .chain(self.firewall.own_boxes().await?)
            .collect();
        for id in others {
            all.entry(id).or_default();
        }
        let mut list = Vec::with_capacity(all.len());
        for (id, objects) in all {
            let state = self.states.load(&id).await?;
            list.push(self.observed(&id, &objects, state).await?);
        }
        Ok(list)
    }
}
