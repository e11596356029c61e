//! What to start: written by whoever starts an instance, read by its supervisor.
//! And where an instance keeps what it knows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cluster::Runtime;
use crate::containerd::Paths;
use crate::kubernetes::existing::ExistingKubernetes;

/// Which parts of the system an instance has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    pub postgres: bool,
    pub nats: bool,
    pub containerd: bool,
    /// A Kubernetes of one node; with `containerd`, boxes run on both.
    #[serde(default)]
    pub kubernetes: bool,
    /// The product's services; they need the stores and a cluster.
    pub services: bool,
}

impl Parts {
    pub const ALL: Self = Self {
        postgres: true,
        nats: true,
        containerd: true,
        kubernetes: false,
        services: true,
    };
    pub const NONE: Self = Self {
        postgres: false,
        nats: false,
        containerd: false,
        kubernetes: false,
        services: false,
    };
    /// Everything, with boxes on a Kubernetes.
    pub const ALL_ON_KUBERNETES: Self = Self {
        containerd: false,
        kubernetes: true,
        ..Self::ALL
    };

    pub(crate) fn clusters(self) -> Vec<Runtime> {
        [
            (self.containerd, Runtime::Containerd),
            (self.kubernetes, Runtime::Kubernetes),
        ]
        .into_iter()
        .filter_map(|(wanted, kind)| wanted.then_some(kind))
        .collect()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// `None` for a test: it is named after the place that it gets.
    pub(crate) deployment: Option<String>,
    pub(crate) parts: Parts,
    /// Where boxes run too, or alone.
    #[serde(default)]
    pub(crate) existing: Option<ExistingKubernetes>,
    pub(crate) replicas: usize,
    /// Whether what is written outlives a power cut, as it must where people work.
    pub(crate) durable: bool,
    pub(crate) bin_dir: PathBuf,
    pub(crate) boxd: PathBuf,
    pub(crate) host: IpAddr,
    /// The public port; `None` for any free one.
    pub(crate) port: Option<u16>,
    /// By service (`*` for each), name and value.
    pub(crate) environment: BTreeMap<String, BTreeMap<String, String>>,
}

impl Plan {
    /// How many clusters its boxes run on.
    pub(crate) fn clusters(&self) -> usize {
        self.parts.clusters().len() + usize::from(self.existing.is_some())
    }

    /// A test's instance: nothing of it is kept.
    pub(crate) fn is_test(&self) -> bool {
        self.deployment.is_none()
    }
}

/// What the names of tests' directories begin with, in the system's own for such.
pub(crate) const TEST_DIRECTORY: &str = "agentbox-test-";

/// An instance's directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout(PathBuf);

impl Layout {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    pub(crate) fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// Locked by the supervisor for as long as it lives.
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("supervisor.lock")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Exists when a test failed, so that its logs shall stay.
    pub(crate) fn keep_marker(&self) -> PathBuf {
        self.0.join("keep")
    }

    pub(crate) fn secrets(&self) -> PathBuf {
        self.0.join("secrets.json")
    }

    pub(crate) fn clusters(&self) -> PathBuf {
        self.0.join("clusters.json")
    }

    pub(crate) fn local_env(&self) -> PathBuf {
        self.0.join("local.env")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    pub(crate) fn postgres(&self) -> PathBuf {
        self.0.join("postgres")
    }

    pub(crate) fn nats(&self) -> PathBuf {
        self.0.join("nats")
    }

    /// The images in the registry of a Kubernetes.
    pub(crate) fn registry(&self) -> PathBuf {
        self.0.join("registry")
    }

    /// Where everything is of one cluster of an instance with a name. None of its clusters'
    /// names begins with another's: what they leave is found by it.
    pub(crate) fn cluster(&self, instance: &str, kind: Runtime) -> Paths {
        let kind = kind.as_str();
        Paths {
            deployment: format!("{instance}-{kind}"),
            // Each version of containerd keeps images in a form of its own.
            root: self.0.join(kind),
            boxes: self.0.join(format!("{kind}-boxes")),
        }
    }
}

/// Where downloads and builds are kept, outside any checkout.
pub(crate) fn cache_directory() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("agentbox")
}
