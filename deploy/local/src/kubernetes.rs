//! A real Kubernetes of one node, built from the projects' sources: etcd, the API server,
//! controllers, scheduler, kubelet, kube-proxy, containerd 2, and Calico for the network. It also
//! has metrics-server and a registry, like most clusters.
//!
//! It does not use Docker or another Kubernetes.
//!
//! * I1. It runs in its own namespaces ([`node`]) and in the instance's run directory. A killed
//!   one leaves the same kinds of objects on the machine as a containerd ([`crate::cleanup`]).
//! * I2. The programs start in this order: kube-proxy, then Felix, then the kubelet. Before
//!   Felix has created its chains, a Pod could send packets that its policy denies.
//! * I3. Only images outlive it.

use std::path::{Path, PathBuf};

use agentbox_testing::KubernetesEndpoint;
use agentbox_testing::endpoint::kubernetes::ClusterAddresses;
use agentbox_testing::paths::{Layout, RUN_DIRECTORIES};
use agentbox_testing::tool::{ToolError, find};
use ipnet::IpNet;

use crate::cluster_paths::ClusterPaths;
use crate::containerd::ContainerdError;
use crate::control_groups;
use crate::image::{Archive, ImageError, Images};
use crate::network::{self, NetworkError, bridge_name};

pub mod addons;
mod admission;
pub(crate) mod api;
pub(crate) mod build;
mod configuration;
mod dns;
pub(crate) mod existing;
pub(crate) mod metrics_server;
pub(crate) mod node;
mod programs;
pub(crate) mod registry;

use api::SYSTEM_NAMESPACE;
use build::Programs;
use configuration::Files;
pub(crate) use programs::{FELIX_PORT, NODE_CONTAINERD, ProgramSpecs};

/// The cluster cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error("a local Kubernetes needs root: run this as root (sudo)")]
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
    #[error("the process that holds the node's namespaces has exited")]
    NoNode,
}

fn require_root() -> Result<(), KubernetesError> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(KubernetesError::NotRoot)
    }
}

pub(crate) struct Kubernetes {
    pub(crate) paths: ClusterPaths,
    pub(crate) addresses: ClusterAddresses,
    pub(crate) endpoint: KubernetesEndpoint,
    pub(crate) programs: Programs,
    /// The image that contains boxd.
    pub(crate) boxd: Archive,
    files: Files,
}

impl Kubernetes {
    /// Creates directories, network and configuration. Everything that a killed supervisor left
    /// must have been removed before ([`crate::cleanup`]).
    pub(crate) async fn prepare(
        paths: ClusterPaths,
        boxd: &Path,
        images: &Images,
        registry: &Path,
        programs: Programs,
    ) -> Result<Self, KubernetesError> {
        require_root()?;
        for program in [
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
            if find(program).is_none() {
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
        let subnet =
            network::create(&paths.deployment, Path::new(RUN_DIRECTORIES), &resolvers).await?;
        let addresses = ClusterAddresses::of(subnet);
        control_groups::create(&paths.deployment).map_err(|source| KubernetesError::Directory {
            path: "/sys/fs/cgroup".into(),
            source,
        })?;
        let files = Files::new(&paths);
        files
            .write(
                &paths,
                &addresses,
                &resolvers,
                &programs,
                images.refuse_docker_hub,
            )
            .await?;
        registry::write(&files, &addresses, registry)?;
        metrics_server::write_keys(&files).await?;
        let boxd = crate::image::programs::build_boxd_image(boxd, &run).await?;
        // The subnet is first: `ClusterAddresses` are its parts.
        let mut cluster_cidrs = vec![IpNet::from(subnet)];
        cluster_cidrs.extend(network::machine_addresses().await?);
        let endpoint = KubernetesEndpoint {
            kubeconfig: files.admin(),
            deployment: paths.deployment.clone(),
            system_namespace: SYSTEM_NAMESPACE.to_owned(),
            boxd_image: boxd.image.clone(),
            boxd_delivery: "image_volume".to_owned(),
            image_pull_secrets: vec![registry::SECRET.to_owned()],
            // The registry of this cluster has images for everybody.
            shared_pull_secrets: vec![registry::SECRET.to_owned()],
            present_images: "kubelet".to_owned(),
            cluster_cidrs,
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

    pub(crate) fn program_specs<'a>(&'a self, layout: &'a Layout, holder: u32) -> ProgramSpecs<'a> {
        ProgramSpecs {
            programs: &self.programs,
            paths: &self.paths,
            files: &self.files,
            addresses: &self.addresses,
            layout,
            holder,
        }
    }
}
