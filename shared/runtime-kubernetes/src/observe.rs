//! Looks at boxes: Kubernetes' objects and our facts put together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{Observed, RuntimeError};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::Api;

use crate::cluster::ApiError;
use crate::driver::Inner;
use crate::facts::Facts;
use crate::labels;
use crate::objects::MAIN;
use crate::phase::{Patience, Seen, phase};

/// A namespace that goes for so long needs an operator.
const STUCK_AFTER: Duration = Duration::from_secs(300);

pub fn instant(time: &Time) -> DateTime<Utc> {
    let nanoseconds = u32::try_from(time.0.subsec_nanosecond()).unwrap_or(0);
    DateTime::from_timestamp(time.0.as_second(), nanoseconds).unwrap_or_default()
}

/// Since when a node has not been ready; `None` when it is.
pub fn silent_since(node: &Node) -> Option<DateTime<Utc>> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")?;
    if ready.status == "True" {
        return None;
    }
    ready.last_transition_time.as_ref().map(instant)
}

/// One box, as it was read just now.
#[derive(Debug)]
pub struct Look {
    pub observed: Observed,
    pub facts: Facts,
    pub pod: Option<Pod>,
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

impl Inner {
    /// Whether an object carries this deployment's label.
    pub fn is_ours(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        labels
            .and_then(|labels| labels.get(labels::DEPLOYMENT))
            .is_some_and(|deployment| *deployment == self.config.deployment)
    }

    pub async fn pod(&self, id: &EnvironmentId) -> Result<Option<Pod>, ApiError> {
        let pods = self.cluster.pods_of(id).await?;
        self.cluster.get(&pods, MAIN).await
    }

    pub fn observed(
        &self,
        id: &EnvironmentId,
        facts: &Facts,
        pod: Option<&Pod>,
        node_silent_since: Option<DateTime<Utc>>,
    ) -> Observed {
        let seconds = Duration::from_secs;
        let phase = phase(&Seen {
            facts,
            pod,
            node_silent_since,
            now: Utc::now(),
            patience: Patience {
                image_pull: seconds(self.config.image_pull_deadline_s),
                unschedulable: seconds(self.config.unschedulable_deadline_s),
                node_lost: seconds(self.config.node_lost_after_s),
            },
        });
        Observed {
            id: id.clone(),
            generation: facts.generation,
            phase,
            created_at: facts.created_at,
        }
    }

    pub async fn get(&self, id: &EnvironmentId) -> Result<Option<Observed>, RuntimeError> {
        Ok(self.look(id).await?.map(|seen| seen.observed))
    }

    /// All that is known of a box now; `None` when the cluster has nothing of it.
    pub async fn look(&self, id: &EnvironmentId) -> Result<Option<Look>, RuntimeError> {
        let (facts, pod) = tokio::try_join!(self.facts(id), self.pod(id))?;
        let Some(facts) = facts else {
            return Ok(None);
        };
        if facts.deleted_at.is_some() && pod.is_none() {
            return Ok(None);
        }
        let silent = match pod.as_ref().and_then(node_of) {
            Some(node) => self.node_silent_since(node).await?,
            None => None,
        };
        let observed = self.observed(id, &facts, pod.as_ref(), silent);
        Ok(Some(Look {
            observed,
            facts,
            pod,
        }))
    }

    /// A node that is not there any more has been silent for ever.
    pub async fn node_silent_since(&self, name: &str) -> Result<Option<DateTime<Utc>>, ApiError> {
        let nodes = self.cluster.nodes().await?;
        match self.cluster.get(&nodes, name).await? {
            Some(node) => Ok(silent_since(&node)),
            None => Ok(Some(DateTime::UNIX_EPOCH)),
        }
    }

    /// Every box that has a namespace; one that is going counts as long as its Pod is there
    /// or our own removal has not come to its end.
    pub async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        let selector = labels::selector(&self.config.deployment);
        let client = self.cluster.client().await?.clone();
        let namespaces = self.cluster.namespaces().await?;
        let (all_pods, all_nodes) = (Api::<Pod>::all(client), self.cluster.nodes().await?);
        // Pods first: one that is made meanwhile is then in a namespace that is listed.
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
        let silent: BTreeMap<String, DateTime<Utc>> = nodes
            .iter()
            .filter_map(|node| Some((node.metadata.name.clone()?, silent_since(node)?)))
            .collect();
        let mut list = Vec::with_capacity(namespaces.len());
        for namespace in &namespaces {
            let Some(id) = labels::id_of(namespace.metadata.labels.as_ref()) else {
                continue;
            };
            let facts = Facts::read(namespace);
            let pod = pod_of.get(&id);
            if facts.deleted_at.is_some() && pod.is_none() {
                report_if_stuck(&id, &facts, namespace);
                continue;
            }
            let since = pod
                .and_then(node_of)
                .and_then(|node| match known.contains(node) {
                    true => silent.get(node).copied(),
                    false => Some(DateTime::UNIX_EPOCH),
                });
            list.push(self.observed(&id, &facts, pod, since));
        }
        Ok(list)
    }
}

/// A namespace that cannot go blocks nobody, and is for an operator to look at.
fn report_if_stuck(
    id: &EnvironmentId,
    facts: &Facts,
    namespace: &k8s_openapi::api::core::v1::Namespace,
) {
    let Some(since) = facts.deleted_at else {
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
    let why: Vec<String> = conditions
        .iter()
        .filter(|condition| condition.status == "True")
        .map(|c| format!("{}: {}", c.type_, c.message.clone().unwrap_or_default()))
        .collect();
    tracing::warn!(environment.id = %id, %since, why = why.join("; "), "a box's namespace does not go");
}
