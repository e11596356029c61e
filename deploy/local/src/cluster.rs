//! The clusters that an instance has: which kinds there are, and a running one as the
//! clusters file has it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::containerd::{ContainerdEndpoint, socket_of};
use crate::kubernetes::KubernetesEndpoint;
use crate::plan::Parts;

/// The label by which a `node_selector` chooses among an instance's clusters.
pub(crate) const LABEL: &str = "runtime";
/// The name of an instance's only cluster.
const ALONE: &str = "local";

/// Where boxes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    Containerd,
    Kubernetes,
}

impl Runtime {
    /// A whole system with boxes there, and nowhere else.
    #[must_use]
    pub const fn parts(self) -> Parts {
        match self {
            Self::Containerd => Parts::ALL,
            Self::Kubernetes => Parts::ALL_ON_KUBERNETES,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// Its cluster's name in an instance that has so many.
    pub(crate) const fn name(self, clusters: usize) -> &'static str {
        match clusters {
            1 => ALONE,
            _ => self.as_str(),
        }
    }
}

/// A running cluster: one entry of the clusters file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    labels: BTreeMap<String, String>,
    #[serde(flatten)]
    endpoint: Endpoint,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "driver", rename_all = "lowercase")]
pub(crate) enum Endpoint {
    Containerd { containerd: ContainerdEndpoint },
    Kubernetes { kubernetes: KubernetesEndpoint },
}

impl Cluster {
    pub(crate) fn new(name: &str, endpoint: Endpoint) -> Self {
        let mut cluster = Self {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            endpoint,
        };
        let kind = cluster.kind().as_str();
        cluster.labels.insert(LABEL.to_owned(), kind.to_owned());
        cluster
    }

    pub(crate) const fn kind(&self) -> Runtime {
        match self.endpoint {
            Endpoint::Containerd { .. } => Runtime::Containerd,
            Endpoint::Kubernetes { .. } => Runtime::Kubernetes,
        }
    }

    pub(crate) const fn containerd(&self) -> Option<&ContainerdEndpoint> {
        match &self.endpoint {
            Endpoint::Containerd { containerd } => Some(containerd),
            Endpoint::Kubernetes { .. } => None,
        }
    }

    pub(crate) const fn kubernetes(&self) -> Option<&KubernetesEndpoint> {
        match &self.endpoint {
            Endpoint::Kubernetes { kubernetes } => Some(kubernetes),
            Endpoint::Containerd { .. } => None,
        }
    }

    /// Where the containerd listens that runs its boxes, if it is on this machine.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        match &self.endpoint {
            Endpoint::Containerd { containerd } => Some(containerd.socket.clone()),
            Endpoint::Kubernetes { kubernetes } => {
                Some(socket_of(&kubernetes.deployment)).filter(|socket| socket.exists())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cluster_is_an_entry_of_the_clusters_file_and_read_back_from_it() {
        let endpoint = json!({
            "kubeconfig": "/k", "deployment": "d", "system_namespace": "s", "boxd_image": "b",
            "boxd_delivery": "image_volume",
            "image_pull_secrets": [], "cluster_cidrs": [], "boxd_client_cidrs": [],
            "dns_servers": [], "reach": "pod_ip",
        });
        let kubernetes: KubernetesEndpoint = serde_json::from_value(endpoint.clone()).unwrap();
        let cluster = Cluster::new("k", Endpoint::Kubernetes { kubernetes });
        let entry = json!({
            "name": "k", "driver": "kubernetes", "labels": { "runtime": "kubernetes" },
            "kubernetes": endpoint,
        });
        assert_eq!(json!(cluster), entry);
        let read: Cluster = serde_json::from_value(entry).unwrap();
        assert!(read.kubernetes().is_some() && read.containerd().is_none());
    }
}
