//! A private containerd: its own root, state, socket, network and images. A host's own
//! containerd or Docker is never touched.
//!
//! Everything about an instance follows from its deployment name and its root directory
//! (see [`Paths`]), so what a killed run left is found and removed without its help.
//!
//! * I1. Everything that ends with the instance lies under its run directory, its boxes
//!   directory, its bridge, and the firewall tables and control groups of its name
//!   ([`leftovers`]).
//! * I2. Images, and only they, outlive it, in `root`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::child::Launch;
use crate::image::{Archive, Images, PAUSE};
use crate::network::{self, NetworkError, Subnet, bridge_name};
use crate::tool::{Tool, ToolError};

mod configuration;
mod control_groups;
pub(crate) mod cri;
pub(crate) mod gvisor;
pub(crate) mod leftovers;
pub(crate) mod slot;

/// containerd cannot be prepared or asked.
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
    Network(#[from] NetworkError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("containerd's CRI: {0}")]
    Cri(String),
    #[error("all {0} places for test instances are in use")]
    NoSlot(u32),
}

/// Every instance has one below.
const RUN_DIRECTORIES: &str = "/run/agentbox";

/// Where everything of one instance is.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) deployment: String,
    /// Images and snapshots; kept.
    pub(crate) root: PathBuf,
    /// What the driver keeps of its boxes; removed with the instance.
    pub(crate) boxes: PathBuf,
}

impl Paths {
    /// `/run/agentbox/<deployment>`: short, since a socket's path is at most 107 bytes,
    /// and gone after a reboot, as everything in it is.
    pub(crate) fn run(&self) -> PathBuf {
        run_directory(&self.deployment)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_of(&self.deployment)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.run().join("state")
    }

    /// Where runc keeps what it started.
    pub(crate) fn runc(&self) -> PathBuf {
        self.run().join("runc")
    }

    /// Where gVisor does.
    pub(crate) fn runsc(&self) -> PathBuf {
        self.run().join("runsc")
    }

    pub(crate) fn configuration(&self) -> PathBuf {
        self.run().join("containerd.toml")
    }
}

/// Where an instance's Postgres data appear when its user cannot reach them in their own
/// place. Not below a run directory: that is removed with all that is in it.
pub(crate) fn postgres_mount(instance: &str) -> PathBuf {
    Path::new(RUN_DIRECTORIES).join(format!("{instance}-postgres"))
}

pub(crate) fn socket_of(deployment: &str) -> PathBuf {
    run_directory(deployment).join("containerd.sock")
}

pub(crate) fn run_directory(deployment: &str) -> PathBuf {
    Path::new(RUN_DIRECTORIES).join(deployment)
}

/// A running containerd, as a cluster's `containerd` object in the clusters file wants it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerdEndpoint {
    pub socket: PathBuf,
    /// For the driver's own files about its boxes.
    pub state_dir: PathBuf,
    /// The static `boxd`, mounted into every box.
    pub boxd: PathBuf,
    pub subnet: Subnet,
    pub bridge: String,
    /// The instance's unique name. A firewall table or control group named
    /// `agentbox-<deployment>` or `agentbox-<deployment>-…` is removed with the instance.
    pub deployment: String,
    /// Whose firewall tables the boxes are in; `None`: the deployment's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    pub dns_servers: Vec<IpAddr>,
}

impl ContainerdEndpoint {
    /// The same containerd and network for a deployment with boxes of its own, as tests
    /// that share one want it. Whatever it leaves is removed with the instance.
    #[must_use]
    pub fn another_deployment(&self) -> Self {
        let name = hex::encode(rand::random::<[u8; 6]>());
        Self {
            // Below ours, so that it is found, and beside our boxes.
            state_dir: self.state_dir.join("shared").join(&name),
            network: Some(self.network.as_ref().unwrap_or(&self.deployment).clone()),
            deployment: format!("{}-{name}", self.deployment),
            ..self.clone()
        }
    }
}

pub(crate) struct Containerd {
    pub(crate) paths: Paths,
    pub(crate) endpoint: ContainerdEndpoint,
}

impl Containerd {
    /// Makes directories, network and configuration. What a killed run left has been
    /// removed before ([`leftovers`]).
    pub(crate) async fn prepare(
        paths: Paths,
        boxd: &Path,
        images: &Images,
    ) -> Result<Self, ContainerdError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(ContainerdError::NotRoot);
        }
        for program in ["containerd", "ctr", "runc", "nft", "ip"] {
            if crate::tool::find(program).is_none() {
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
        configuration::write(&paths, subnet, &bridge, images.refuse_hub).map_err(|source| {
            ContainerdError::Directory {
                path: run.clone(),
                source,
            }
        })?;
        let endpoint = ContainerdEndpoint {
            socket: paths.socket(),
            state_dir: paths.boxes.clone(),
            boxd: boxd.to_owned(),
            subnet,
            bridge,
            deployment: paths.deployment.clone(),
            network: None,
            dns_servers: resolvers,
        };
        Ok(Self { paths, endpoint })
    }

    pub(crate) fn launch(&self, log: PathBuf) -> Launch {
        Launch {
            name: "containerd".to_owned(),
            program: "containerd".into(),
            arguments: vec!["--config".into(), self.paths.configuration().into()],
            environment: BTreeMap::new(),
            user: None,
            stop_signal: Signal::SIGTERM,
            orphan_signal: Signal::SIGKILL,
            grace: Duration::from_secs(10),
            log,
        }
    }

    /// Imports the archives that this containerd does not have yet.
    pub(crate) async fn import(&self, images: &Images) -> Result<(), ContainerdError> {
        import(Path::new("ctr"), &self.paths, &images.archives).await
    }

    /// The sandbox image's name, for the configuration.
    const fn pause() -> &'static str {
        PAUSE
    }
}

/// Imports the archives that the instance's containerd does not have yet, with the `ctr`
/// that belongs to it.
pub(crate) async fn import<'a>(
    ctr: &Path,
    paths: &Paths,
    archives: impl IntoIterator<Item = &'a Archive>,
) -> Result<(), ContainerdError> {
    // Which archive an image came from is not in containerd; a changed recipe has
    // another file name.
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
        let there = listed.lines().any(|line| line == archive.image)
            && known.lines().any(|line| line == path);
        if !there {
            run(&["images", "import", &path]).await?;
        }
        imported.push(path);
    }
    std::fs::write(&record, imported.join("\n")).map_err(|source| ContainerdError::Directory {
        path: record.clone(),
        source,
    })
}
