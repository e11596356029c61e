//! Looks at boxes: containerd's objects and our facts put together.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{Observed, RuntimeError};
use chrono::{DateTime, Utc};
use k8s_cri::v1::{Container, ContainerState, PodSandbox};

use crate::driver::Inner;
use crate::facts::Facts;
use crate::phase::{self, ContainerSeen, Seen};
use crate::{cgroup, labels, output};

/// containerd's objects of one box; more than one sandbox only after a killed `ensure`.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub sandboxes: Vec<PodSandbox>,
    pub containers: Vec<Container>,
}

impl Objects {
    /// The newest container: the one that counts.
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

    /// The highest generation that a label tells.
    pub fn generation(&self) -> Option<i64> {
        let of = |labels: &HashMap<String, String>| labels.get(labels::GENERATION)?.parse().ok();
        self.sandboxes
            .iter()
            .filter_map(|sandbox| of(&sandbox.labels))
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

impl Inner {
    pub async fn objects(&self, id: &EnvironmentId) -> Result<Objects, RuntimeError> {
        let selector = labels::of_box(&self.config.deployment, id);
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
        let selector = labels::of_deployment(&self.config.deployment);
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

    /// A box's phase; of objects and facts that were read just now.
    pub async fn seen(
        &self,
        id: &EnvironmentId,
        objects: &Objects,
        facts: Option<Facts>,
    ) -> Result<Seen, RuntimeError> {
        let container = match objects.container() {
            None => ContainerSeen::Absent,
            Some(container) if container.state() == ContainerState::ContainerExited => {
                match self.cri.container_status(&container.id).await? {
                    Some(status) => phase::of_status(status),
                    None => ContainerSeen::Absent,
                }
            }
            Some(container) => phase::listed(container.state()),
        };
        let termination = match container {
            ContainerSeen::Exited(_) => output::termination(&self.output_directory(id)),
            _ => None,
        };
        let out_of_memory = matches!(container, ContainerSeen::Exited(_))
            && termination.is_none()
            && cgroup::was_out_of_memory(&self.config.deployment, id);
        Ok(Seen {
            facts,
            container,
            termination,
            out_of_memory,
        })
    }

    pub async fn observed(
        &self,
        id: &EnvironmentId,
        objects: &Objects,
        facts: Option<Facts>,
    ) -> Result<Observed, RuntimeError> {
        let generation = facts
            .as_ref()
            .map(|f| f.generation)
            .or(objects.generation())
            .unwrap_or(0);
        let created_at = facts
            .as_ref()
            .map(|f| f.created_at)
            .or(objects.created_at());
        let seen = self.seen(id, objects, facts).await?;
        Ok(Observed {
            id: id.clone(),
            generation,
            phase: phase::phase(&seen),
            created_at: created_at.unwrap_or_default(),
        })
    }

    pub async fn get(&self, id: &EnvironmentId) -> Result<Option<Observed>, RuntimeError> {
        let objects = self.objects(id).await?;
        let facts = self.facts.load(id).await?;
        if facts.is_none() && objects.sandboxes.is_empty() && objects.containers.is_empty() {
            return Ok(None);
        }
        self.observed(id, &objects, facts).await.map(Some)
    }

    /// Every box that has anything here: in containerd, in our files, a control group,
    /// or firewall rules whose box is nowhere else.
    pub async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        let mut all = self.all_objects().await?;
        let elsewhere: BTreeSet<EnvironmentId> = self
            .facts
            .ids()
            .await?
            .into_iter()
            .chain(cgroup::boxes(&self.config.deployment))
            .chain(self.firewall.own_boxes().await?)
            .collect();
        for id in elsewhere {
            all.entry(id).or_default();
        }
        let mut list = Vec::with_capacity(all.len());
        for (id, objects) in all {
            let facts = self.facts.load(&id).await?;
            list.push(self.observed(&id, &objects, facts).await?);
        }
        Ok(list)
    }
}
