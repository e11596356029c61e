//! Where a cluster of an instance keeps its files.
//!
//! All paths follow from the deployment's name and its directories, so that the objects of a killed
//! supervisor can be found and removed ([`crate::cleanup`]).

use std::path::{Path, PathBuf};

use agentbox_testing::Runtime;
use agentbox_testing::paths::{Layout, RUN_DIRECTORIES, containerd_socket, run_directory};

/// The directories of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterPaths {
    pub(crate) deployment: String,
    /// Images, snapshots, and the driver's records of images; kept.
    pub(crate) root: PathBuf,
    /// The driver's files about its boxes; removed with the instance.
    pub(crate) boxes: PathBuf,
}

impl ClusterPaths {
    /// The directories of a cluster of an instance with a name. The name of one cluster is not
    /// a prefix of another's, because clean-up finds what belongs to a cluster by its prefix.
    pub(crate) fn of_instance(layout: &Layout, instance: &str, kind: Runtime) -> Self {
        let name = kind.as_str();
        Self {
            deployment: format!("{instance}-{name}"),
            root: layout.directory().join(Self::directory_name(kind)),
            boxes: layout.directory().join(format!("{name}-boxes")),
        }
    }

    /// The directory of a kind of cluster. Earlier versions ran containerd 1.6 in `containerd`, whose
    /// files containerd 2 would change for good.
    pub(crate) fn directory_name(kind: Runtime) -> &'static str {
        match kind {
            Runtime::Containerd => "containerd-2",
            Runtime::Kubernetes => "kubernetes",
        }
    }

    /// The run directory, in which everything ends with the instance.
    pub(crate) fn run(&self) -> PathBuf {
        run_directory(&self.deployment)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        containerd_socket(&self.deployment)
    }

    /// containerd's state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.run().join("state")
    }

    /// runc's state directory.
    pub(crate) fn runc(&self) -> PathBuf {
        self.run().join("runc")
    }

    /// gVisor's state directory.
    pub(crate) fn runsc(&self) -> PathBuf {
        self.run().join("runsc")
    }

    /// containerd's configuration.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.run().join("containerd.toml")
    }
}

/// Where an instance's Postgres data are mounted when its user has no access to their own
/// directory. It is not below a run directory, because that is removed with its content.
pub(crate) fn postgres_mount(instance: &str) -> PathBuf {
    Path::new(RUN_DIRECTORIES).join(format!("{instance}-postgres"))
}
