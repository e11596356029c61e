//! What is added to a running test cluster, and asked of it: images, a DNS server, what the
//! API server was asked.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::api::Api;
use super::build::{BuildError, Programs};
use super::node::Addresses;
use super::{KubernetesEndpoint, KubernetesError, build, dns, registry};
use crate::containerd::{run_directory, socket_of};
use crate::image::{Archive, programs};
use crate::plan::cache_directory;
use crate::tool::Tool;

/// Helm and CoreDNS, built once.
#[derive(Clone, Debug)]
pub struct Tools(Programs);

impl Tools {
    /// Those of the cache; `say` hears of what is built.
    ///
    /// # Errors
    /// When one cannot be built.
    pub async fn provide(say: impl FnMut(String)) -> Result<Self, BuildError> {
        build::provide_tools(&cache_directory(), say)
            .await
            .map(Self)
    }

    #[must_use]
    pub fn helm(&self) -> PathBuf {
        self.0.bin("helm").join("helm")
    }

    fn coredns(&self) -> PathBuf {
        self.0.bin("coredns").join("coredns")
    }
}

impl KubernetesEndpoint {
    fn addresses(&self) -> Option<Addresses> {
        let whole = self.cluster_cidrs.first()?.to_string();
        whole.parse().ok().map(Addresses::of)
    }

    /// This machine, as its Pods see it.
    #[must_use]
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.addresses().map(|addresses| addresses.gateway)
    }

    /// The node: its NodePorts are reached there from this machine.
    #[must_use]
    pub fn node(&self) -> Option<Ipv4Addr> {
        self.addresses().map(|addresses| addresses.node)
    }

    /// One line of JSON for each request of a service account of the system namespace.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        run_directory(&self.deployment).join("audit.log")
    }

    /// A directory that is the same on this machine and on the node, for hostPath volumes;
    /// gone with the cluster.
    #[must_use]
    pub fn shared_directory(&self) -> PathBuf {
        run_directory(&self.deployment).join("shared")
    }

    /// The cluster's registry, over HTTP; it wants a login.
    #[must_use]
    pub fn registry(&self) -> Option<SocketAddr> {
        Some(registry::address(&self.addresses()?))
    }

    /// A Docker client's `config.json` with that login.
    #[must_use]
    pub fn registry_login(&self) -> PathBuf {
        registry::login(&run_directory(&self.deployment))
    }

    /// Puts an image into the cluster's registry as `name`; its whole name there.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn push(&self, image: &Archive, name: &str) -> Result<String, KubernetesError> {
        let programs = build::provide(&cache_directory(), |_| {}).await?;
        let registry = self.registry().ok_or(KubernetesError::NoNode)?;
        let whole = format!("{registry}/{name}");
        let login = self.registry_login();
        Tool::new(programs.bin("registry").join("crane"))
            .args(["push", "--insecure"])
            .args([&image.path])
            .args([&whole])
            .env("DOCKER_CONFIG", login.parent().unwrap_or(&login))
            .within(std::time::Duration::from_secs(180))
            .run()
            .await?;
        Ok(whole)
    }

    /// Gives the node images; one that it has by that name is replaced.
    ///
    /// # Errors
    /// When the node's containerd does not take one.
    pub async fn import(
        &self,
        images: impl IntoIterator<Item = &Archive>,
    ) -> Result<(), KubernetesError> {
        let programs = build::provide(&cache_directory(), |_| {}).await?;
        let socket = socket_of(&self.deployment);
        for archive in images {
            Tool::new(programs.bin("containerd").join("ctr"))
                .args([Path::new("--address"), &socket])
                .args(["--namespace", "k8s.io", "images", "import"])
                .args([&archive.path])
                .within(std::time::Duration::from_secs(180))
                .run()
                .await?;
        }
        Ok(())
    }

    /// A DNS server for the cluster's own names, as every real one has.
    ///
    /// # Errors
    /// When it cannot be imported or the API server refuses it.
    pub async fn add_dns(&self, tools: &Tools, directory: &Path) -> Result<(), KubernetesError> {
        let name = "agentbox.local/coredns";
        let image = programs::of_program(&tools.coredns(), name, directory).await?;
        self.import([&image]).await?;
        let addresses = self.addresses().ok_or(KubernetesError::NoNode)?;
        let api = Api::connect(&self.kubeconfig).await?;
        api.set_up(dns::objects(&image.image, addresses.dns()))
            .await?;
        Ok(())
    }
}
