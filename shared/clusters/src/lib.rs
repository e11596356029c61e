//! The clusters file, which the scheduler and the exec-proxies read alike, and the driver
//! of each cluster in it:
//! `{"clusters":[{"name":"local","driver":"containerd","labels":{},"containerd":{…}}]}`.
//!
//! A cluster's `labels` are what a request's `node_selector` chooses it by. They are its
//! nodes' labels too: a cluster of one machine is that machine.
//!
//! What only one of them needs of a cluster is its own type, read beside the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use agentbox_runtime::{BoxConnector, Runtime};
use agentbox_runtime_containerd as containerd;
use agentbox_runtime_kubernetes as kubernetes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Debug, thiserror::Error)]
pub enum ClustersError {
    #[error("the clusters file {path} cannot be read")]
    Unreadable {
        path: String,
        source: std::io::Error,
    },
    #[error("the clusters file {path} is malformed")]
    Malformed {
        path: String,
        source: serde_json::Error,
    },
    #[error("`{0}` is not a cluster's name: it is of a-z, A-Z, 0-9, _ and -")]
    Name(String),
    #[error("cluster `{0}` is named twice")]
    Twice(String),
    #[error("the clusters file names no cluster")]
    Empty,
    #[error("the driver of cluster `{cluster}` cannot be used")]
    Driver {
        cluster: String,
        source: ConnectError,
    },
}

/// A driver's own reason.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Containerd(#[from] containerd::ConnectError),
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::ConnectError),
}

/// One cluster of the file, and what its reader wants of it beside the driver.
#[derive(Clone, Deserialize)]
pub struct ClusterSpec<T> {
    /// A token of subjects.
    pub name: String,
    /// What a `node_selector` chooses it by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(flatten)]
    pub own: T,
    #[serde(flatten)]
    driver: DriverSpec,
}

#[derive(Clone, Deserialize)]
#[serde(tag = "driver", rename_all = "lowercase")]
enum DriverSpec {
    Containerd { containerd: Box<containerd::Config> },
    Kubernetes { kubernetes: Box<kubernetes::Config> },
}

/// The driver of one cluster, whichever it is.
enum Driver {
    Containerd(containerd::Driver),
    Kubernetes(kubernetes::Driver),
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: DeserializeOwned"))]
struct File<T> {
    clusters: Vec<ClusterSpec<T>>,
}

/// Reads the clusters file.
///
/// # Errors
/// When it cannot be read, is malformed, or names a cluster badly or twice, or none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<ClusterSpec<T>>, ClustersError> {
    let shown = || path.display().to_string();
    let text = std::fs::read(path).map_err(|source| ClustersError::Unreadable {
        path: shown(),
        source,
    })?;
    let file: File<T> =
        serde_json::from_slice(&text).map_err(|source| ClustersError::Malformed {
            path: shown(),
            source,
        })?;
    check_names(file.clusters.iter().map(|spec| spec.name.as_str()))?;
    Ok(file.clusters)
}

/// Names become tokens of subjects.
fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), ClustersError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() || name.len() > 63 || !name.bytes().all(fits) {
            return Err(ClustersError::Name(name.chars().take(80).collect()));
        }
        if !seen.insert(name) {
            return Err(ClustersError::Twice(name.to_owned()));
        }
    }
    if seen.is_empty() {
        Err(ClustersError::Empty)
    } else {
        Ok(())
    }
}

impl<T> ClusterSpec<T> {
    /// The kind of cluster, as in the file.
    #[must_use]
    pub const fn driver_name(&self) -> &'static str {
        match self.driver {
            DriverSpec::Containerd { .. } => "containerd",
            DriverSpec::Kubernetes { .. } => "kubernetes",
        }
    }

    /// The scheduler's side of the cluster's driver. Does not wait for the cluster itself:
    /// one that is down answers that it is unavailable, and comes back.
    ///
    /// # Errors
    /// When the driver's configuration cannot be used here, or not yet.
    pub fn runtime(&self) -> Result<Arc<dyn Runtime>, ClustersError> {
        Ok(match self.connect()? {
            Driver::Containerd(driver) => Arc::new(driver),
            Driver::Kubernetes(driver) => Arc::new(driver),
        })
    }

    /// The exec-proxy's side; else as [`Self::runtime`].
    ///
    /// # Errors
    /// When the driver's configuration cannot be used here, or not yet.
    pub fn connector(&self) -> Result<Arc<dyn BoxConnector>, ClustersError> {
        Ok(match self.connect()? {
            Driver::Containerd(driver) => Arc::new(driver),
            Driver::Kubernetes(driver) => Arc::new(driver),
        })
    }

    fn connect(&self) -> Result<Driver, ClustersError> {
        let connected = match &self.driver {
            DriverSpec::Containerd { containerd } => {
                let mut config = (**containerd).clone();
                add_labels(&mut config.labels, &self.labels);
                containerd::Driver::connect(config)
                    .map(Driver::Containerd)
                    .map_err(ConnectError::from)
            }
            DriverSpec::Kubernetes { kubernetes } => {
                let mut config = (**kubernetes).clone();
                add_labels(&mut config.labels, &self.labels);
                kubernetes::Driver::connect(config)
                    .map(Driver::Kubernetes)
                    .map_err(ConnectError::from)
            }
        };
        connected.map_err(|source| ClustersError::Driver {
            cluster: self.name.clone(),
            source,
        })
    }
}

/// A driver's own labels go before the cluster's.
fn add_labels(own: &mut BTreeMap<String, String>, clusters: &BTreeMap<String, String>) {
    for (key, value) in clusters {
        own.entry(key.clone()).or_insert_with(|| value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Nothing {}

    #[test]
    fn each_kind_of_cluster_is_read_and_another_is_refused() {
        let read = |cluster: serde_json::Value| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("clusters.json");
            let text = serde_json::json!({ "clusters": [cluster] }).to_string();
            std::fs::write(&path, text).unwrap();
            super::read::<Nothing>(&path).map(|specs| specs[0].driver_name())
        };
        let containerd = serde_json::json!({
            "name": "one", "driver": "containerd", "containerd": {
                "socket": "/s", "state_dir": "/d", "boxd": "/b", "subnet": "10.1.0.0/20",
                "bridge": "b0", "deployment": "one", "dns_servers": [],
            },
        });
        let kubernetes = serde_json::json!({
            "name": "two", "driver": "kubernetes", "kubernetes": {
                "deployment": "two", "boxd_image": "boxd:1", "cluster_cidrs": ["10.2.0.0/16"],
            },
        });
        assert_eq!(read(containerd).unwrap(), "containerd");
        assert_eq!(read(kubernetes).unwrap(), "kubernetes");
        assert!(read(serde_json::json!({ "name": "three", "driver": "docker" })).is_err());
    }

    #[test]
    fn a_name_that_cannot_be_a_subject_token_is_refused() {
        for names in [
            &["a.b"][..],
            &[""],
            &["*"],
            &["eu 1"],
            &["eu-1", "eu-1"],
            &[],
        ] {
            assert!(check_names(names.iter().copied()).is_err(), "{names:?}");
        }
        assert!(check_names(["local", "eu-1", "EU_2"].into_iter()).is_ok());
    }
}
