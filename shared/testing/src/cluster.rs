//! The clusters of an instance, in the form of the clusters file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::endpoint::containerd::ContainerdEndpoint;
use crate::endpoint::kubernetes::KubernetesEndpoint;
use crate::paths::containerd_socket;
use crate::plan::{Components, Plan};

/// The label by which a `node_selector` selects a cluster of an instance.
pub const LABEL: &str = "runtime";
/// The name of an instance's only cluster.
const ONLY_CLUSTER: &str = "local";

/// A kind of cluster on which boxes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    Containerd,
    Kubernetes,
}

impl Runtime {
    /// A whole system with boxes on this kind of cluster only.
    #[must_use]
    pub const fn components(self) -> Components {
        match self {
            Self::Containerd => Components::ALL,
            Self::Kubernetes => Components::ALL_ON_KUBERNETES,
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// The name of its cluster in an instance with this number of clusters.
    #[must_use]
    pub const fn cluster_name(self, clusters: usize) -> &'static str {
        match clusters {
            1 => ONLY_CLUSTER,
            _ => self.as_str(),
        }
    }
}

impl Components {
    /// The clusters to start.
    #[must_use]
    pub fn clusters(self) -> Vec<Runtime> {
        [
            (self.containerd, Runtime::Containerd),
            (self.kubernetes, Runtime::Kubernetes),
        ]
        .into_iter()
        .filter_map(|(is_wanted, kind)| is_wanted.then_some(kind))
        .collect()
    }
}

impl Plan {
    /// The number of clusters on which boxes run.
    #[must_use]
    pub fn cluster_count(&self) -> usize {
        self.components.clusters().len() + usize::from(self.existing.is_some())
    }
}

/// A running cluster: one entry of the clusters file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    labels: BTreeMap<String, String>,
    #[serde(flatten)]
    endpoint: Endpoint,
}

/// How a cluster is reached, by its driver.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "driver", rename_all = "lowercase")]
pub enum Endpoint {
    Containerd { containerd: ContainerdEndpoint },
    Kubernetes { kubernetes: KubernetesEndpoint },
}

impl Cluster {
    #[must_use]
    pub fn new(name: &str, endpoint: Endpoint) -> Self {
        let mut cluster = Self {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            endpoint,
        };
        let kind = cluster.kind().as_str();
        cluster.labels.insert(LABEL.to_owned(), kind.to_owned());
        cluster
    }

    /// The cluster with the account of the services.
    #[must_use]
    pub fn for_services(mut self) -> Self {
        if let Endpoint::Kubernetes { kubernetes } = &mut self.endpoint {
            kubernetes.kubeconfig = kubernetes.services_kubeconfig();
        }
        self
    }

    #[must_use]
    pub const fn kind(&self) -> Runtime {
        match self.endpoint {
            Endpoint::Containerd { .. } => Runtime::Containerd,
            Endpoint::Kubernetes { .. } => Runtime::Kubernetes,
        }
    }

    #[must_use]
    pub const fn containerd(&self) -> Option<&ContainerdEndpoint> {
        match &self.endpoint {
            Endpoint::Containerd { containerd } => Some(containerd),
            Endpoint::Kubernetes { .. } => None,
        }
    }

    #[must_use]
    pub const fn kubernetes(&self) -> Option<&KubernetesEndpoint> {
        match &self.endpoint {
            Endpoint::Kubernetes { kubernetes } => Some(kubernetes),
            Endpoint::Containerd { .. } => None,
        }
    }

    /// The socket of the containerd that runs its boxes, if it is on this machine.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        match &self.endpoint {
            Endpoint::Containerd { containerd } => Some(containerd.socket.clone()),
            Endpoint::Kubernetes { kubernetes } => {
                Some(containerd_socket(&kubernetes.deployment)).filter(|socket| socket.exists())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::paths::run_directory;

    #[test]
    fn cluster_round_trips_through_the_clusters_file() {
        let endpoint = json!({
            "kubeconfig": "/k", "deployment": "d", "system_namespace": "s", "boxd_image": "b",
            "boxd_delivery": "image_volume",
            "image_pull_secrets": [], "shared_pull_secrets": [], "present_images": "kubelet",
            "cluster_cidrs": [], "boxd_client_cidrs": [],
            "dns_servers": [], "reach": "pod_ip",
        });
        let kubernetes: KubernetesEndpoint = serde_json::from_value(endpoint.clone()).unwrap();
        // The kubeconfig of a cluster of somebody else.
        assert_eq!(kubernetes.services_kubeconfig(), kubernetes.kubeconfig);
        let mut local = kubernetes.clone();
        local.kubeconfig = run_directory("d").join("admin.kubeconfig");
        let services = run_directory("d").join("services.kubeconfig");
        let local = Cluster::new("k", Endpoint::Kubernetes { kubernetes: local });
        assert_eq!(
            local.for_services().kubernetes().unwrap().kubeconfig,
            services
        );
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
