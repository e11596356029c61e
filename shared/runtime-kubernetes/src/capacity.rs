//! The resources of the cluster's nodes, and how much of them boxes have reserved.

use std::collections::BTreeMap;

use agentbox_contracts::environment::{Enforcement, LimitEnforcement};
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::{Capacity, RuntimeError};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::Api;

use crate::config::Config;
use crate::context::Context;
use crate::labels;
use crate::observe::unready_since;

type Quantities = BTreeMap<String, Quantity>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ResourceSum {
    cpu: MilliCpu,
    memory: Bytes,
    storage: Bytes,
}

impl ResourceSum {
    /// Reads Kubernetes' quantities; a missing or malformed one counts as zero.
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

fn is_schedulable(node: &Node) -> bool {
    let is_open = node
        .spec
        .as_ref()
        .is_none_or(|spec| spec.unschedulable != Some(true));
    is_open && unready_since(node).is_none()
}

/// The resources that a Pod reserves until it ends.
fn reserved(pod: &Pod) -> ResourceSum {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return ResourceSum::default();
    }
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .filter_map(|container| container.resources.as_ref()?.limits.as_ref())
        .map(ResourceSum::read)
        .fold(ResourceSum::default(), ResourceSum::plus)
}

/// The labels that every node has with the same value.
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

impl Context {
    pub async fn capacity(&self) -> Result<Capacity, RuntimeError> {
        let client = self.cluster.client().await?;
        let (all_nodes, all_pods) = (self.cluster.nodes().await?, Api::<Pod>::all(client.clone()));
        let (version, nodes, pods, runtime_classes) = tokio::try_join!(
            self.cluster.call("version", client.apiserver_version()),
            self.cluster.list(&all_nodes, None),
            // Of every deployment: they share the cluster.
            self.cluster.list(&all_pods, Some(labels::DEPLOYMENT)),
            self.runtime_classes(),
        )?;
        let nodes: Vec<&Node> = nodes.iter().filter(|node| is_schedulable(node)).collect();
        let total = nodes
            .iter()
            .filter_map(|node| node.status.as_ref()?.allocatable.as_ref())
            .map(ResourceSum::read)
            .fold(ResourceSum::default(), ResourceSum::plus);
        let reserved = pods
            .iter()
            .map(reserved)
            .fold(ResourceSum::default(), ResourceSum::plus);
        Ok(Capacity {
            version: version.git_version,
            nodes: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
            total_cpu: total.cpu,
            total_memory: total.memory,
            available_cpu: MilliCpu(total.cpu.0.saturating_sub(reserved.cpu.0)),
            available_memory: Bytes(total.memory.0.saturating_sub(reserved.memory.0)),
            available_storage: Bytes(total.storage.0.saturating_sub(reserved.storage.0)),
            total_storage: total.storage,
            labels: {
                let mut labels = common_labels(&nodes);
                labels.extend(self.config.labels.clone());
                labels
            },
            runtime_classes,
            enforcement: enforcement(&self.config),
        })
    }
}

/// The network plugin enforces the bounds on the network, the kubelet measures storage, and the nodes
/// create user namespaces.
fn enforcement(config: &Config) -> LimitEnforcement {
    let delegated = |is_configured| Enforcement::when(is_configured, Enforcement::Delegated);
    LimitEnforcement {
        storage: Enforcement::Measured,
        // A runtime keeps them outside of what the kubelet measures.
        image_volumes: Enforcement::Absent,
        user_namespaces: delegated(config.user_namespaces),
        bandwidth: delegated(config.network_bandwidth.is_some()),
        connections: delegated(config.network_connections.is_some()),
        block_io: Enforcement::Absent,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ended_box_reserves_nothing() {
        let pod = |phase: &str| -> Pod {
            serde_json::from_value(json!({
                "spec": { "containers": [{ "name": "main", "resources": { "limits": {
                    "cpu": "500m", "memory": "64Mi", "ephemeral-storage": "1Gi" }}}]},
                "status": { "phase": phase },
            }))
            .unwrap()
        };
        let running = reserved(&pod("Running"));
        assert_eq!(
            (running.cpu, running.memory),
            (MilliCpu(500), Bytes(64 << 20))
        );
        assert_eq!(reserved(&pod("Failed")), ResourceSum::default());
    }

    #[test]
    fn user_namespaces_are_delegated_only_if_pods_ask_for_them() {
        for (asked, expected) in [(true, Enforcement::Delegated), (false, Enforcement::Absent)] {
            let mut json = crate::config::tests::minimal();
            json["user_namespaces"] = asked.into();
            let reported = enforcement(&serde_json::from_value(json).unwrap());
            assert_eq!(reported.user_namespaces, expected);
        }
    }

    #[test]
    fn bounds_on_the_network_are_delegated_or_absent() {
        for (bound, expected) in [
            ("2M", Enforcement::Delegated),
            ("none", Enforcement::Absent),
        ] {
            let mut json = crate::config::tests::minimal();
            json["network_bandwidth"] = bound.into();
            json["network_connections"] = bound.into();
            let reported = enforcement(&serde_json::from_value(json).unwrap());
            assert_eq!(reported.bandwidth, expected);
            assert_eq!(reported.connections, expected);
        }
    }

    #[test]
    fn cordoned_or_unready_node_has_no_capacity() {
        let node = |unschedulable: bool, ready: &str| -> Node {
            serde_json::from_value(json!({
                "spec": { "unschedulable": unschedulable },
                "status": { "conditions": [{ "type": "Ready", "status": ready,
                    "lastTransitionTime": "2026-01-02T03:04:05Z" }]},
            }))
            .unwrap()
        };
        assert!(is_schedulable(&node(false, "True")));
        assert!(!is_schedulable(&node(true, "True")));
        assert!(!is_schedulable(&node(false, "Unknown")));
    }
}
