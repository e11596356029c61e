//! The addresses of the cluster's nodes, from one watch for each driver.
//!
//! The watch begins with its first subscriber and ends with the driver.
//!
//! * I1. The addresses are published after each complete list and each change, and never from an
//!   incomplete list: no node is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agentbox_contracts::ErrorChain;
use futures::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinHandle;

use crate::cluster::{ApiError, Cluster};
use crate::config::Config;
use crate::context::Context;

/// Every address of every node; `None` before the first complete list.
pub type Published = Option<BTreeSet<IpAddr>>;

#[derive(Debug, Default)]
pub struct NodeWatch(OnceCell<Started>);

#[derive(Debug)]
struct Started {
    addresses: watch::Receiver<Published>,
    task: JoinHandle<()>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NodeWatch {
    /// The addresses from now on.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn subscribe(
        &self,
        cluster: &Cluster,
    ) -> Result<watch::Receiver<Published>, ApiError> {
        let started = self
            .0
            .get_or_try_init(|| async {
                let nodes = cluster.nodes().await?;
                let (sender, addresses) = watch::channel(None);
                let task = tokio::task::spawn(publish_addresses(nodes, sender));
                Ok::<_, ApiError>(Started { addresses, task })
            })
            .await?;
        Ok(started.addresses.clone())
    }
}

/// Never ends: after an error the watcher lists and watches again, with growing pauses.
async fn publish_addresses(nodes: Api<Node>, published: watch::Sender<Published>) {
    let mut events = watcher::watcher(nodes, watcher::Config::default())
        .default_backoff()
        .boxed();
    let mut known = KnownNodes::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if let Some(addresses) = known.apply(event) {
                    published.send_if_modified(|current| {
                        let is_new = current.as_ref() != Some(&addresses);
                        *current = Some(addresses);
                        is_new
                    });
                }
            }
            Err(error) => {
                tracing::info!(error = %ErrorChain(&error), "the watch of nodes was interrupted");
            }
        }
    }
}

type NodeAddresses = BTreeMap<String, Vec<IpAddr>>;

/// The nodes that the watch has reported.
#[derive(Debug, Default)]
struct KnownNodes {
    /// The nodes of the list in progress.
    listed: NodeAddresses,
    current: NodeAddresses,
}

impl KnownNodes {
    /// Applies an event. Returns all addresses, unless a list is in progress.
    fn apply(&mut self, event: Event<Node>) -> Option<BTreeSet<IpAddr>> {
        let name_of = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        match event {
            Event::Init => {
                self.listed.clear();
                return None;
            }
            Event::InitApply(node) => {
                self.listed.insert(name_of(&node), addresses_of(&node));
                return None;
            }
            Event::InitDone => self.current = std::mem::take(&mut self.listed),
            Event::Apply(node) => {
                self.current.insert(name_of(&node), addresses_of(&node));
            }
            Event::Delete(node) => {
                self.current.remove(&name_of(&node));
            }
        }
        Some(self.current.values().flatten().copied().collect())
    }
}

/// A node's internal and external addresses. A node may also have names.
fn addresses_of(node: &Node) -> Vec<IpAddr> {
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    addresses
        .iter()
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

/// The addresses that are in none of the configured `cluster_cidrs`, as the smallest list of
/// networks.
pub fn unlisted(addresses: &BTreeSet<IpAddr>, config: &Config) -> Vec<IpNet> {
    let is_listed = |address: &IpAddr| config.cluster_cidrs.iter().any(|net| net.contains(address));
    let unlisted: Vec<IpNet> = addresses
        .iter()
        .filter(|address| !is_listed(address))
        .map(|address| IpNet::from(*address))
        .collect();
    IpNet::aggregate(&unlisted)
}

impl Context {
    /// The addresses of nodes that the configuration does not list. Waits for the first list of
    /// nodes.
    pub async fn unlisted_nodes(&self) -> Result<Vec<IpNet>, ApiError> {
        let after = self.config.call_deadline();
        let mut published = self.node_watch.subscribe(&self.cluster).await?;
        match tokio::time::timeout(after, published.wait_for(Option::is_some)).await {
            Ok(Ok(addresses)) => {
                let known = addresses.as_ref();
                Ok(known.map_or_else(Vec::new, |known| unlisted(known, &self.config)))
            }
            // The publishing task does not end before the driver.
            Ok(Err(_)) | Err(_) => Err(ApiError::Deadline {
                operation: "list the nodes",
                after,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, addresses: &[&str]) -> Node {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| json!({ "type": "InternalIP", "address": address }))
            .collect();
        serde_json::from_value(json!({
            "metadata": { "name": name }, "status": { "addresses": addresses },
        }))
        .unwrap()
    }

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn incomplete_list_is_not_published() {
        let mut known = KnownNodes::default();
        let a = || node("a", &["192.0.2.1", "a.example"]);
        assert_eq!(known.apply(Event::Init), None);
        assert_eq!(known.apply(Event::InitApply(a())), None);
        let b = node("b", &["192.0.2.2", "2001:db8::2"]);
        assert_eq!(known.apply(Event::InitApply(b)), None);
        let both = addresses(&["192.0.2.1", "192.0.2.2", "2001:db8::2"]);
        assert_eq!(known.apply(Event::InitDone), Some(both));
        let moved = node("b", &["192.0.2.3"]);
        let after = addresses(&["192.0.2.1", "192.0.2.3"]);
        assert_eq!(known.apply(Event::Apply(moved)), Some(after));
        // A new list replaces the nodes of the former one.
        assert_eq!(known.apply(Event::Init), None);
        assert_eq!(known.apply(Event::InitApply(a())), None);
        let only = addresses(&["192.0.2.1"]);
        assert_eq!(known.apply(Event::InitDone), Some(only));
        assert_eq!(known.apply(Event::Delete(a())), Some(BTreeSet::new()));
    }

    #[test]
    fn listed_address_is_left_out() {
        // `cluster_cidrs` contains 192.168.7.0/24.
        let config: Config = serde_json::from_value(crate::config::tests::minimal()).unwrap();
        let all = addresses(&["192.168.7.9", "198.51.100.8", "198.51.100.9", "2001:db8::1"]);
        let unlisted: Vec<String> = unlisted(&all, &config)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(unlisted, ["198.51.100.8/31", "2001:db8::1/128"]);
    }
}
