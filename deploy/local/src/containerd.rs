//! A private containerd with its own root, state, socket, network and images. It does not use
//! the host's containerd or Docker.
//!
//! * I1. Everything that ends with the instance is in its run directory, its boxes directory,
//!   its bridge, and the firewall tables and control groups of its name ([`crate::cleanup`]).
//! * I2. Only images and the driver's records of them outlive it, in `root`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::ContainerdEndpoint;
use agentbox_testing::paths::RUN_DIRECTORIES;
use agentbox_testing::tool::{Tool, ToolError, find, search_path};
use nix::sys::signal::Signal;

use crate::cluster_paths::ClusterPaths;
use crate::image::{Archive, Images};
use crate::kubernetes::build::{BuildError, Programs};
use crate::network::{self, NetworkError, bridge_name};
use crate::process::ProcessSpec;

mod configuration;
pub(crate) mod cri;

/// containerd cannot be prepared or queried.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    #[error("boxes need root: run this as root (sudo)")]
    NotRoot,
    #[error("`{0}` is not installed: run `agentbox-local prepare`")]
    NotInstalled(&'static str),
    #[error("cannot prepare {path}: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("containerd's CRI: {0}")]
    Cri(String),
}

pub(crate) struct Containerd {
    pub(crate) paths: ClusterPaths,
    pub(crate) endpoint: ContainerdEndpoint,
    /// The directory of containerd's programs.
    bin: PathBuf,
}

impl Containerd {
    /// Creates directories, network and configuration; `registry_proxy` is the address of the proxy
    /// that receives the requests of pulls. Everything that a killed supervisor left
    /// must have been removed before ([`crate::cleanup`]).
    pub(crate) async fn prepare(
        paths: ClusterPaths,
        programs: &Programs,
        boxd: &Path,
        images: &Images,
        registry_proxy: Option<SocketAddr>,
    ) -> Result<Self, ContainerdError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(ContainerdError::NotRoot);
        }
        for program in ["nft", "ip", "conntrack", "mkfs.ext4"] {
            if find(program).is_none() {
                return Err(ContainerdError::NotInstalled(program));
            }
        }
        let run = paths.run();
        for directory in [
            &paths.root,
            &paths.boxes,
            &run,
            &run.join("cni"),
            &run.join("certs.d"),
            &run.join("tmp"),
        ] {
            std::fs::create_dir_all(directory).map_err(|source| ContainerdError::Directory {
                path: directory.clone(),
                source,
            })?;
        }
        let resolvers = network::resolvers();
        let subnet =
            network::create(&paths.deployment, Path::new(RUN_DIRECTORIES), &resolvers).await?;
        let bridge = bridge_name(&paths.deployment);
        let runc = programs.bin("runc").join("runc");
        configuration::write(&paths, &runc, subnet, &bridge, images.refuse_docker_hub)
            .and_then(|()| configuration::write_registry_proxy(&paths, registry_proxy))
            .map_err(|source| ContainerdError::Directory {
                path: run.clone(),
                source,
            })?;
        let endpoint = ContainerdEndpoint {
            socket: paths.socket(),
            state_dir: paths.boxes.clone(),
            image_records_dir: Some(paths.root.join("image-records")),
            boxd: boxd.to_owned(),
            subnet,
            bridge,
            deployment: paths.deployment.clone(),
            network: None,
            dns_servers: resolvers,
            network_bandwidth: None,
        };
        let bin = programs.bin("containerd");
        Ok(Self {
            paths,
            endpoint,
            bin,
        })
    }

    pub(crate) fn process_spec(&self, log: PathBuf) -> ProcessSpec {
        ProcessSpec {
            name: "containerd".to_owned(),
            program: self.bin.join("containerd"),
            program_override: None,
            environment_file: None,
            arguments: vec!["--config".into(), self.paths.configuration().into()],
            environment: BTreeMap::from([
                // containerd searches its shim on PATH.
                (
                    "PATH".to_owned(),
                    format!("{}:{}", self.bin.display(), search_path()),
                ),
                // A killed containerd leaves mounts of lower directories here, which the cleanup finds.
                (
                    "TMPDIR".to_owned(),
                    self.paths.run().join("tmp").display().to_string(),
                ),
            ]),
            user: None,
            stop_signal: Signal::SIGTERM,
            orphan_signal: Signal::SIGKILL,
            grace: Duration::from_secs(10),
            log,
        }
    }

    /// Imports the archives that this containerd does not have.
    pub(crate) async fn import(&self, images: &Images) -> Result<(), ContainerdError> {
        import(&self.bin.join("ctr"), &self.paths, &images.archives).await
    }
}

/// Imports the archives that the instance's containerd does not have, by its `ctr`.
pub(crate) async fn import<'a>(
    ctr: &Path,
    paths: &ClusterPaths,
    archives: impl IntoIterator<Item = &'a Archive>,
) -> Result<(), ContainerdError> {
    // containerd does not store the archive of an image. The file name of an archive changes
    // with its recipe, so the names of the imported archives are kept here.
    let record = paths.root.join("imported");
    let known = std::fs::read_to_string(&record).unwrap_or_default();
    let run = |arguments: &[&str]| {
        Tool::new(ctr)
            .args(["--address"])
            .args([paths.socket()])
            .args(["--namespace", "k8s.io"])
            .args(arguments)
            .within(Duration::from_secs(120))
            .run()
    };
    let listed = run(&["images", "list", "-q"]).await?;
    let mut imported = Vec::new();
    for archive in archives {
        let path = archive.path.to_string_lossy().into_owned();
        let is_imported = listed.lines().any(|line| line == archive.image)
            && known.lines().any(|line| line == path);
        if !is_imported {
            run(&["images", "import", &path]).await?;
        }
        imported.push(path);
    }
    std::fs::write(&record, imported.join("\n")).map_err(|source| ContainerdError::Directory {
        path: record.clone(),
        source,
    })
}
