//! A real Kubernetes of one node, from the projects' own sources: etcd, the API server,
//! controllers, scheduler, kubelet, kube-proxy, containerd 2, and Calico for the network; and what clusters have beside: metrics-server,
//! a registry.
//! No other Kubernetes and no Docker is needed, and none is touched.
//!
//! * I1. All of it runs in namespaces of its own ([`node`]) and below the instance's run
//!   directory; what the instance leaves is what a containerd instance leaves
//!   ([`crate::containerd::leftovers`]) and control groups.
//! * I2. Order matters: kube-proxy, then Felix, then the kubelet. Until Felix has
//!   made its chains, a Pod without rights could send.
//! * I3. Images, and only they, outlive it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::containerd::{ContainerdError, Paths};
use crate::image::{Archive, ImageError, Images};
use crate::network::{self, NetworkError, bridge_name};
use crate::plan::{Layout, cache_directory};
use crate::tool::ToolError;

pub(crate) mod api;
pub(crate) mod build;
mod configuration;
mod dns;
pub mod existing;
pub mod guest;
pub(crate) mod measure;
pub(crate) mod node;
mod programs;
pub(crate) mod registry;

use api::SYSTEM_NAMESPACE;
use build::Programs;
use configuration::Files;
use node::Addresses;
pub(crate) use programs::{FELIX_PORT, Launches, NODE_CONTAINERD};

/// The cluster cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error("a Kubernetes of its own needs root: run this as root (sudo)")]
    NotRoot,
    #[error("`{0}` is not installed: run `agentbox-local prepare`")]
    NotInstalled(&'static str),
    #[error("cannot prepare {path}: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Build(#[from] build::BuildError),
    #[error(transparent)]
    Write(#[from] configuration::WriteError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Api(#[from] api::ApiError),
    #[error("the node's first process is gone")]
    NoNode,
}

/// A running cluster, as a cluster's `kubernetes` object in the clusters file wants it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KubernetesEndpoint {
    /// Of an administrator.
    pub kubeconfig: PathBuf,
    /// The instance's unique name.
    pub deployment: String,
    pub system_namespace: String,
    pub boxd_image: String,
    /// How the driver brings it into boxes.
    pub boxd_delivery: String,
    /// The Secret with the login of the cluster's registry.
    pub image_pull_secrets: Vec<String>,
    /// Nodes, services and pods.
    pub cluster_cidrs: Vec<IpNet>,
    /// This machine, as the boxes see it: its exec-proxies reach them from there.
    pub boxd_client_cidrs: Vec<String>,
    pub dns_servers: Vec<IpAddr>,
    /// How the driver reaches boxes.
    pub reach: String,
}

impl KubernetesEndpoint {
    /// How many processes the cluster's node allows in each Pod.
    #[must_use]
    pub const fn pids_of_a_pod(&self) -> u32 {
        configuration::PIDS_OF_A_POD
    }
}

/// Builds what of a cluster is not yet there, which a start would do without a word. `say`
/// hears of what takes long.
///
/// # Errors
/// When one cannot be built, or nobody but root could use it.
pub async fn build_kubernetes(say: impl FnMut(String)) -> Result<(), KubernetesError> {
    require_root()?;
    build::provide(&cache_directory(), say).await?;
    Ok(())
}

fn require_root() -> Result<(), KubernetesError> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(KubernetesError::NotRoot)
    }
}

pub(crate) struct Kubernetes {
    pub(crate) paths: Paths,
    pub(crate) addresses: Addresses,
    pub(crate) endpoint: KubernetesEndpoint,
    pub(crate) programs: Programs,
    /// boxd, as the image that Pods take it from.
    pub(crate) boxd: Archive,
    files: Files,
}

impl Kubernetes {
    /// Makes directories, network and configuration. What a killed run left has been
    /// removed before.
    pub(crate) async fn prepare(
        paths: Paths,
        boxd: &Path,
        images: &Images,
        registry: &Path,
        programs: Programs,
    ) -> Result<Self, KubernetesError> {
        require_root()?;
        for program in [
            "runc",
            "nft",
            "ip",
            "iptables",
            "ip6tables",
            "ipset",
            "conntrack",
            "nsenter",
            "openssl",
            "sysctl",
        ] {
            if crate::tool::find(program).is_none() {
                return Err(KubernetesError::NotInstalled(program));
            }
        }
        let run = paths.run();
        for directory in [&paths.root, &run] {
            std::fs::create_dir_all(directory).map_err(|source| KubernetesError::Directory {
                path: directory.clone(),
                source,
            })?;
        }
        let resolvers = network::resolvers();
        let whole =
            network::create(&paths.deployment, Path::new("/run/agentbox"), &resolvers).await?;
        let addresses = Addresses::of(whole);
        node::create_control_groups(&paths.deployment).map_err(|source| {
            KubernetesError::Directory {
                path: "/sys/fs/cgroup".into(),
                source,
            }
        })?;
        let files = Files::new(&paths);
        let plugins = programs.bin("calico");
        files
            .write(&paths, &addresses, &resolvers, &plugins, images.refuse_hub)
            .await?;
        registry::write(&files, &addresses, registry)?;
        measure::write_keys(&files).await?;
        let boxd = crate::image::programs::of_boxd(boxd, &run).await?;
        let endpoint = KubernetesEndpoint {
            kubeconfig: files.admin(),
            deployment: paths.deployment.clone(),
            system_namespace: SYSTEM_NAMESPACE.to_owned(),
            boxd_image: boxd.image.clone(),
            boxd_delivery: "image_volume".to_owned(),
            image_pull_secrets: vec![registry::SECRET.to_owned()],
            cluster_cidrs: vec![whole.into()],
            boxd_client_cidrs: vec![format!("{}/32", addresses.gateway)],
            dns_servers: resolvers,
            reach: "pod_ip".to_owned(),
        };
        Ok(Self {
            paths,
            addresses,
            endpoint,
            programs,
            boxd,
            files,
        })
    }

    pub(crate) fn bridge(&self) -> String {
        bridge_name(&self.paths.deployment)
    }

    pub(crate) fn launches<'a>(&'a self, layout: &'a Layout, keeper: u32) -> Launches<'a> {
        Launches {
            programs: &self.programs,
            paths: &self.paths,
            files: &self.files,
            addresses: &self.addresses,
            layout,
            keeper,
        }
    }
}
