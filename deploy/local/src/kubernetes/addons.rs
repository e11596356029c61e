//! Additions to a running cluster, for tests and for `agentbox-local kubernetes`: images and a
//! DNS server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::KubernetesEndpoint;
use agentbox_testing::endpoint::kubernetes::ClusterAddresses;
use agentbox_testing::paths::{cache_directory, containerd_socket, run_directory};
use agentbox_testing::tool::Tool;
use ipnet::IpNet;

use super::api::Api;
use super::build::{BuildError, Programs};
use super::{KubernetesError, build, dns, registry};
use crate::image::{Archive, programs};

/// The deadline for moving one image.
const IMAGE_DEADLINE: Duration = Duration::from_secs(180);

/// Helm and CoreDNS, built once.
#[derive(Clone, Debug)]
pub struct Tools(Programs);

impl Tools {
    /// The tools in the cache. `progress` receives a message before each build.
    ///
    /// # Errors
    /// When one cannot be built.
    pub async fn provide(progress: impl FnMut(String)) -> Result<Self, BuildError> {
        build::provide_tools(&cache_directory(), progress)
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

/// Builds the programs of a Kubernetes that are not in the cache.
///
/// # Errors
/// When one cannot be built, or this process is not root, as a start requires.
pub(crate) async fn build(progress: impl FnMut(String)) -> Result<(), KubernetesError> {
    super::require_root()?;
    build::provide(&cache_directory(), progress).await?;
    Ok(())
}

fn addresses(endpoint: &KubernetesEndpoint) -> Result<ClusterAddresses, KubernetesError> {
    match endpoint.cluster_cidrs.first() {
        Some(IpNet::V4(subnet)) => Ok(ClusterAddresses::of(*subnet)),
        _ => Err(KubernetesError::NoNode),
    }
}

/// Pushes an image to the cluster's registry as `name`; gives the image's full name there.
///
/// # Errors
/// When the registry refuses it.
pub async fn push(
    endpoint: &KubernetesEndpoint,
    image: &Archive,
    name: &str,
) -> Result<String, KubernetesError> {
    let programs = build::provide(&cache_directory(), |_| {}).await?;
    let registry = addresses(endpoint)?.registry();
    let full_name = format!("{registry}/{name}");
    let login = registry::login(&run_directory(&endpoint.deployment));
    Tool::new(programs.bin("registry").join("crane"))
        .args(["push", "--insecure"])
        .args([&image.path])
        .args([&full_name])
        .env("DOCKER_CONFIG", login.parent().unwrap_or(&login))
        .within(IMAGE_DEADLINE)
        .run()
        .await?;
    Ok(full_name)
}

/// Imports images into the node's containerd, replacing images of the same names.
///
/// # Errors
/// When the node's containerd refuses one.
pub async fn import(
    endpoint: &KubernetesEndpoint,
    images: impl IntoIterator<Item = &Archive>,
) -> Result<(), KubernetesError> {
    let programs = build::provide(&cache_directory(), |_| {}).await?;
    let socket = containerd_socket(&endpoint.deployment);
    for archive in images {
        Tool::new(programs.bin("containerd").join("ctr"))
            .args([Path::new("--address"), &socket])
            .args(["--namespace", "k8s.io", "images", "import"])
            .args([&archive.path])
            .within(IMAGE_DEADLINE)
            .run()
            .await?;
    }
    Ok(())
}

/// Installs CoreDNS for the cluster's own names. The archive of its image is written into
/// `directory`.
///
/// # Errors
/// When the image cannot be imported or the API server refuses an object.
pub async fn add_dns(
    endpoint: &KubernetesEndpoint,
    tools: &Tools,
    directory: &Path,
) -> Result<(), KubernetesError> {
    let name = "agentbox.local/coredns";
    let image = programs::build_program_image(&tools.coredns(), name, directory).await?;
    import(endpoint, [&image]).await?;
    let dns = addresses(endpoint)?.dns();
    let api = Api::connect(&endpoint.kubeconfig).await?;
    api.set_up(dns::objects(&image.image, dns)).await?;
    Ok(())
}
