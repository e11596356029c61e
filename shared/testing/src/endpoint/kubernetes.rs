//! A running Kubernetes of one node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::paths::run_directory;

/// The kubelet's `podPidsLimit`: how many processes each Pod may have.
pub const POD_PIDS_LIMIT: u32 = 128;
/// The port of the cluster's registry on its node.
pub const REGISTRY_PORT: u16 = 5_000;

/// A running cluster, in the form of a cluster's `kubernetes` object in the clusters file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KubernetesEndpoint {
    /// The kubeconfig of an administrator.
    pub kubeconfig: PathBuf,
    /// The instance's unique name.
    pub deployment: String,
    pub system_namespace: String,
    pub boxd_image: String,
    /// How the driver delivers boxd into boxes.
    pub boxd_delivery: String,
    /// The Secret with the login of the cluster's registry, for boxd's image.
    pub image_pull_secrets: Vec<String>,
    /// The same Secret, for every user's images.
    #[serde(default)]
    pub shared_pull_secrets: Vec<String>,
    /// What keeps an image that the node has from users who may not pull it.
    #[serde(default)]
    pub present_images: String,
    /// The networks of nodes, services and pods, and this machine's addresses.
    pub cluster_cidrs: Vec<IpNet>,
    /// This machine's address as boxes see it: exec-proxy connects to them from there.
    pub boxd_client_cidrs: Vec<String>,
    pub dns_servers: Vec<IpAddr>,
    /// How the driver connects to boxes.
    pub reach: String,
}

impl KubernetesEndpoint {
    /// The kubeconfig of the services. On a local cluster admission policies limit their account.
    #[must_use]
    pub fn services_kubeconfig(&self) -> PathBuf {
        let run = run_directory(&self.deployment);
        if self.kubeconfig.starts_with(&run) {
            run.join("services.kubeconfig")
        } else {
            self.kubeconfig.clone()
        }
    }

    /// How many processes the cluster's node allows in each Pod.
    #[must_use]
    pub const fn pod_pids_limit(&self) -> u32 {
        POD_PIDS_LIMIT
    }

    fn addresses(&self) -> Option<ClusterAddresses> {
        match self.cluster_cidrs.first()? {
            IpNet::V4(subnet) => Some(ClusterAddresses::of(*subnet)),
            IpNet::V6(_) => None,
        }
    }

    /// This machine's address as the Pods see it.
    #[must_use]
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.addresses().map(|addresses| addresses.gateway)
    }

    /// The node's address, on which this machine reaches its NodePorts.
    #[must_use]
    pub fn node(&self) -> Option<Ipv4Addr> {
        self.addresses().map(|addresses| addresses.node)
    }

    /// The API server's audit log: one line of JSON for each request of a service account of
    /// the system namespace.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        run_directory(&self.deployment).join("audit.log")
    }

    /// A directory with the same content on this machine and on the node, for hostPath volumes.
    /// It is removed with the cluster.
    #[must_use]
    pub fn shared_directory(&self) -> PathBuf {
        run_directory(&self.deployment).join("shared")
    }

    /// The cluster's registry. It speaks HTTP and requires a login.
    #[must_use]
    pub fn registry(&self) -> Option<SocketAddr> {
        Some(self.addresses()?.registry())
    }
}

/// The addresses of a cluster of one node: parts of the instance's /20 subnet.
#[derive(Clone, Copy, Debug)]
pub struct ClusterAddresses {
    pub subnet: Ipv4Net,
    /// This machine's address on the instance's bridge.
    pub gateway: Ipv4Addr,
    pub node: Ipv4Addr,
    pub services: Ipv4Net,
    pub pods: Ipv4Net,
}

impl ClusterAddresses {
    /// Divides a /20: nodes are in the first quarter, services are the second, pods have the
    /// second half.
    #[must_use]
    pub fn of(subnet: Ipv4Net) -> Self {
        let part =
            |offset: u32, length: u8| Ipv4Net::new(host(subnet, offset), length).unwrap_or(subnet);
        Self {
            subnet,
            gateway: host(subnet, 1),
            node: host(subnet, 2),
            services: part(1 << 10, 22),
            pods: part(1 << 11, 21),
        }
    }

    /// The address of the cluster's DNS Service.
    #[must_use]
    pub fn dns(&self) -> Ipv4Addr {
        host(self.services, 10)
    }

    /// The registry's address on the node.
    #[must_use]
    pub fn registry(&self) -> SocketAddr {
        (self.node, REGISTRY_PORT).into()
    }
}

/// The address at this offset in a network.
fn host(network: Ipv4Net, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()) + offset)
}

/// A Kubernetes that already runs, for the boxes alone: the services run on this machine and
/// reach boxes through its API server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExistingKubernetes {
    /// The kubeconfig of a user with all rights on namespaces and their contents.
    pub kubeconfig: PathBuf,
    /// An image that contains `/boxd` and that its nodes can pull.
    pub boxd_image: String,
    /// The networks of its pods, services and nodes. Boxes are kept out of them.
    pub cluster_cidrs: Vec<IpNet>,
    /// As of [`KubernetesEndpoint::present_images`].
    pub present_images: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_addresses_of_a_subnet_do_not_overlap() {
        let addresses = ClusterAddresses::of("10.160.32.0/20".parse().unwrap());
        assert_eq!(addresses.gateway.to_string(), "10.160.32.1");
        assert_eq!(addresses.node.to_string(), "10.160.32.2");
        assert_eq!(addresses.services.to_string(), "10.160.36.0/22");
        assert_eq!(addresses.pods.to_string(), "10.160.40.0/21");
        assert_eq!(addresses.dns().to_string(), "10.160.36.10");
    }
}
