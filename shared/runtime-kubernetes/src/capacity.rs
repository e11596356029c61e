//! What the cluster's nodes have, less what is promised to boxes.

use std::collections::BTreeMap;

use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::{Capacity, RuntimeError};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::Api;

use crate::driver::Inner;
use crate::labels;
use crate::observe::silent_since;

type Quantities = BTreeMap<String, Quantity>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    cpu: MilliCpu,
    memory: Bytes,
    storage: Bytes,
}

impl Amount {
    /// What is missing or cannot be read counts as nothing.
    fn read(quantities: &Quantities) -> Self {
        let bytes = |name: &str| quantities.get(name).and_then(|q| q.0.parse().ok());
        let cpu = quantities.get("cpu").and_then(|q| q.0.parse().ok());
        Self {
            cpu: cpu.unwrap_or(MilliCpu(0)),
            memory: bytes("memory").unwrap_or(Bytes(0)),
            storage: bytes("ephemeral-storage").unwrap_or(Bytes(0)),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu: MilliCpu(self.cpu.0.saturating_add(other.cpu.0)),
            memory: Bytes(self.memory.0.saturating_add(other.memory.0)),
            storage: Bytes(self.storage.0.saturating_add(other.storage.0)),
        }
    }
}

fn takes_boxes(node: &Node) -> bool {
    let is_open = node
        .spec
        .as_ref()
        .is_none_or(|spec| spec.unschedulable != Some(true));
    is_open && silent_since(node).is_none()
}

/// What is promised to a box that has not ended.
fn promised(pod: &Pod) -> Amount {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Amount::default();
    }
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .filter_map(|container| container.resources.as_ref()?.limits.as_ref())
        .map(Amount::read)
        .fold(Amount::default(), Amount::plus)
}

/// Labels that every node has alike.
fn common_labels(nodes: &[&Node]) -> BTreeMap<String, String> {
    let mut all = nodes
        .iter()
        .map(|node| node.metadata.labels.clone().unwrap_or_default());
    let first = all.next().unwrap_or_default();
    all.fold(first, |mut common, labels| {
        common.retain(|key, value| labels.get(key) == Some(value));
        common
    })
}

impl Inner {
    pub async fn capacity(&self) -> Result<Capacity, RuntimeError> {
        let client = self.cluster.client().await?;
        let (all_nodes, all_pods) = (self.cluster.nodes().await?, Api::<Pod>::all(client.clone()));
        let (version, nodes, pods, runtime_classes) = tokio::try_join!(
            self.cluster.call("version", client.apiserver_version()),
            self.cluster.list(&all_nodes, None),
            // Every deployment's: the cluster is shared.
            self.cluster.list(&all_pods, Some(labels::DEPLOYMENT)),
            self.runtime_classes(),
        )?;
        let nodes: Vec<&Node> = nodes.iter().filter(|node| takes_boxes(node)).collect();
        let total = nodes
            .iter()
            .filter_map(|node| node.status.as_ref()?.allocatable.as_ref())
            .map(Amount::read)
            .fold(Amount::default(), Amount::plus);
        let promised = pods
            .iter()
            .map(promised)
            .fold(Amount::default(), Amount::plus);
        Ok(Capacity {
            version: version.git_version,
            nodes: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
            total_cpu: total.cpu,
            total_memory: total.memory,
            available_cpu: MilliCpu(total.cpu.0.saturating_sub(promised.cpu.0)),
            available_memory: Bytes(total.memory.0.saturating_sub(promised.memory.0)),
            available_storage: Bytes(total.storage.0.saturating_sub(promised.storage.0)),
            labels: {
                let mut labels = common_labels(&nodes);
                labels.extend(self.config.labels.clone());
                labels
            },
            runtime_classes,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_box_that_has_ended_is_promised_nothing() {
        let pod = |phase: &str| -> Pod {
            serde_json::from_value(json!({
                "spec": { "containers": [{ "name": "main", "resources": { "limits": {
                    "cpu": "500m", "memory": "64Mi", "ephemeral-storage": "1Gi" }}}]},
                "status": { "phase": phase },
            }))
            .unwrap()
        };
        let running = promised(&pod("Running"));
        assert_eq!(
            (running.cpu, running.memory),
            (MilliCpu(500), Bytes(64 << 20))
        );
        assert_eq!(promised(&pod("Failed")), Amount::default());
    }

    #[test]
    fn a_node_that_is_closed_or_silent_takes_no_boxes() {
        let node = |unschedulable: bool, ready: &str| -> Node {
            serde_json::from_value(json!({
                "spec": { "unschedulable": unschedulable },
                "status": { "conditions": [{ "type": "Ready", "status": ready,
                    "lastTransitionTime": "2026-01-02T03:04:05Z" }]},
            }))
            .unwrap()
        };
        assert!(takes_boxes(&node(false, "True")));
        assert!(!takes_boxes(&node(true, "True")));
        assert!(!takes_boxes(&node(false, "Unknown")));
    }
}
