//! Observes boxes: combines Kubernetes' objects with the recorded state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{Observed, RuntimeError};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;

use crate::box_state::BoxState;
use crate::cluster::ApiError;
use crate::context::Context;
use crate::labels;
use crate::objects::MAIN;
use crate::phase::{Deadlines, Observation, phase};
use crate::timestamps::from_kubernetes;

/// The deletion of a namespace that takes longer is reported: an operator must repair it.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// Since when a node has not been ready; `None` when it is.
pub fn unready_since(node: &Node) -> Option<DateTime<Utc>> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")?;
    if ready.status == "True" {
        return None;
    }
    ready.last_transition_time.as_ref().map(from_kubernetes)
}

/// A box as it was just read.
#[derive(Debug)]
pub struct Snapshot {
    pub observed: Observed,
    pub state: BoxState,
    pub pod: Option<Pod>,
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

impl Context {
    /// Whether an object carries this deployment's label.
    pub fn has_deployment_label(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        labels
            .and_then(|labels| labels.get(labels::DEPLOYMENT))
            .is_some_and(|deployment| *deployment == self.config.deployment)
    }

    pub async fn pod(&self, id: &EnvironmentId) -> Result<Option<Pod>, ApiError> {
        let pods = self.cluster.box_pods(id).await?;
        self.cluster.get(&pods, MAIN).await
    }

    pub fn observed(
        &self,
        id: &EnvironmentId,
        state: &BoxState,
        pod: Option<&Pod>,
        node_unready_since: Option<DateTime<Utc>>,
    ) -> Observed {
        let seconds = Duration::from_secs;
        let phase = phase(&Observation {
            state,
            pod,
            node_unready_since,
            now: Utc::now(),
            deadlines: Deadlines {
                image_pull: seconds(self.config.image_pull_deadline_s),
                unschedulable: seconds(self.config.unschedulable_deadline_s),
                node_lost: seconds(self.config.node_lost_after_s),
            },
        });
        Observed {
            id: id.clone(),
            generation: state.generation,
            phase,
            created_at: state.created_at,
        }
    }

    pub async fn get(&self, id: &EnvironmentId) -> Result<Option<Observed>, RuntimeError> {
        Ok(self.snapshot(id).await?.map(|snapshot| snapshot.observed))
    }

    /// Reads a box; `None` when the cluster has nothing of it.
    pub async fn snapshot(&self, id: &EnvironmentId) -> Result<Option<Snapshot>, RuntimeError> {
        let (state, pod) = tokio::try_join!(self.box_state(id), self.pod(id))?;
        let Some(state) = state else {
            return Ok(None);
        };
        if state.deleted_at.is_some() && pod.is_none() {
            return Ok(None);
        }
        let unready = match pod.as_ref().and_then(node_of) {
            Some(node) => self.node_unready_since(node).await?,
            None => None,
        };
        let observed = self.observed(id, &state, pod.as_ref(), unready);
        Ok(Some(Snapshot {
            observed,
            state,
            pod,
        }))
    }

    /// Since when a node has not been ready. A deleted node counts as never ready.
    pub async fn node_unready_since(&self, name: &str) -> Result<Option<DateTime<Utc>>, ApiError> {
        let nodes = self.cluster.nodes().await?;
        match self.cluster.get(&nodes, name).await? {
            Some(node) => Ok(unready_since(&node)),
            None => Ok(Some(DateTime::UNIX_EPOCH)),
        }
    }

    /// Every box that has a namespace. One whose namespace is being deleted counts while its Pod
    /// exists.
    pub async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        let selector = labels::selector(&self.config.deployment);
        let client = self.cluster.client().await?.clone();
        let namespaces = self.cluster.namespaces().await?;
        let (all_pods, all_nodes) = (Api::<Pod>::all(client), self.cluster.nodes().await?);
        // Pods first: the namespace of a Pod that is listed is then listed too.
        let (pods, nodes) = tokio::try_join!(
            self.cluster.list(&all_pods, Some(&selector)),
            self.cluster.list(&all_nodes, None),
        )?;
        let namespaces = self.cluster.list(&namespaces, Some(&selector)).await?;
        let mut pod_of: BTreeMap<EnvironmentId, Pod> = BTreeMap::new();
        for pod in pods {
            if let Some(id) = labels::id_of(pod.metadata.labels.as_ref()) {
                pod_of.insert(id, pod);
            }
        }
        let known: BTreeSet<String> = nodes
            .iter()
            .filter_map(|n| n.metadata.name.clone())
            .collect();
        let unready: BTreeMap<String, DateTime<Utc>> = nodes
            .iter()
            .filter_map(|node| Some((node.metadata.name.clone()?, unready_since(node)?)))
            .collect();
        let mut list = Vec::with_capacity(namespaces.len());
        for namespace in &namespaces {
            let Some(id) = labels::id_of(namespace.metadata.labels.as_ref()) else {
                continue;
            };
            let state = BoxState::read(namespace);
            let pod = pod_of.get(&id);
            if state.deleted_at.is_some() && pod.is_none() {
                report_if_stuck(&id, &state, namespace);
                continue;
            }
            let since = pod
                .and_then(node_of)
                .and_then(|node| match known.contains(node) {
                    true => unready.get(node).copied(),
                    false => Some(DateTime::UNIX_EPOCH),
                });
            list.push(self.observed(&id, &state, pod, since));
        }
        Ok(list)
    }
}

/// Logs a namespace whose deletion is stuck. It blocks no other box.
fn report_if_stuck(
    id: &EnvironmentId,
    state: &BoxState,
    namespace: &k8s_openapi::api::core::v1::Namespace,
) {
    let Some(since) = state.deleted_at else {
        return;
    };
    if (Utc::now() - since).to_std().unwrap_or_default() < STUCK_AFTER {
        return;
    }
    let conditions = namespace
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let reasons: Vec<String> = conditions
        .iter()
        .filter(|condition| condition.status == "True")
        .map(|c| format!("{}: {}", c.type_, c.message.clone().unwrap_or_default()))
        .collect();
    tracing::warn!(environment.id = %id, %since, reasons = reasons.join("; "), "the namespace of a box cannot be deleted");
}
