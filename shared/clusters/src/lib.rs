//! The clusters file, which the scheduler and the exec-proxies read, and the drivers of its
//! clusters.
//!
//! `{"clusters":[{"name":"local","driver":"containerd","labels":{},"containerd":{…}}]}`.
//!
//! A request's `node_selector` selects a cluster by its `labels`. They count as labels of its
//! nodes too.
//!
//! A service may define further fields of a cluster: [`ClusterSpec::extra`].

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
    #[error("clusters: a name must be 1 to 63 characters of a-z, A-Z, 0-9, _ and -, is `{0}`")]
    Name(String),
    #[error("clusters: the name `{0}` must be unique")]
    Duplicate(String),
    #[error("clusters: must not be empty")]
    Empty,
    #[error("cannot construct the driver of cluster `{cluster}`")]
    Driver {
        cluster: String,
        source: ConnectError,
    },
}

/// The error of a driver.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Containerd(#[from] containerd::ConnectError),
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::ConnectError),
}

/// One cluster of the file, with the further fields `T` of the reading service.
#[derive(Clone, Deserialize)]
pub struct ClusterSpec<T> {
    /// A token of NATS subjects.
    pub name: String,
    /// The labels that a `node_selector` is matched against.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The fields that only the reading service knows.
    #[serde(flatten)]
    pub extra: T,
    #[serde(flatten)]
    driver: DriverSpec,
}

#[derive(Clone, Deserialize)]
#[serde(tag = "driver", rename_all = "lowercase")]
enum DriverSpec {
    Containerd { containerd: Box<containerd::Config> },
    Kubernetes { kubernetes: Box<kubernetes::Config> },
}

/// The kind of a cluster's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum DriverKind {
    Containerd,
    Kubernetes,
}

/// The driver of one cluster.
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
/// When it cannot be read, is malformed, has no cluster, or has an invalid or duplicate name.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<ClusterSpec<T>>, ClustersError> {
    let display_path = || path.display().to_string();
    let text = std::fs::read(path).map_err(|source| ClustersError::Unreadable {
        path: display_path(),
        source,
    })?;
    let file: File<T> =
        serde_json::from_slice(&text).map_err(|source| ClustersError::Malformed {
            path: display_path(),
            source,
        })?;
    check_names(file.clusters.iter().map(|spec| spec.name.as_str()))?;
    Ok(file.clusters)
}

/// Checks the names, which become tokens of NATS subjects.
fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), ClustersError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() || name.len() > 63 || !name.bytes().all(fits) {
            return Err(ClustersError::Name(name.chars().take(80).collect()));
        }
        if !seen.insert(name) {
            return Err(ClustersError::Duplicate(name.to_owned()));
        }
    }
    if seen.is_empty() {
        Err(ClustersError::Empty)
    } else {
        Ok(())
    }
}

impl<T> ClusterSpec<T> {
    #[must_use]
    pub const fn driver_kind(&self) -> DriverKind {
        match self.driver {
            DriverSpec::Containerd { .. } => DriverKind::Containerd,
            DriverSpec::Kubernetes { .. } => DriverKind::Kubernetes,
        }
    }

    /// Constructs the driver for the scheduler, without waiting for the cluster. While the
    /// cluster is down, calls return [`agentbox_runtime::RuntimeError::Unavailable`].
    ///
    /// # Errors
    /// When the driver's configuration is invalid on this machine.
    pub fn runtime(&self) -> Result<Arc<dyn Runtime>, ClustersError> {
        Ok(match self.driver()? {
            Driver::Containerd(driver) => Arc::new(driver),
            Driver::Kubernetes(driver) => Arc::new(driver),
        })
    }

    /// Constructs the driver for an exec-proxy, like [`Self::runtime`].
    ///
    /// # Errors
    /// When the driver's configuration is invalid on this machine.
    pub fn connector(&self) -> Result<Arc<dyn BoxConnector>, ClustersError> {
        Ok(match self.driver()? {
            Driver::Containerd(driver) => Arc::new(driver),
            Driver::Kubernetes(driver) => Arc::new(driver),
        })
    }

    /// Constructs the driver, with the cluster's labels beside its own.
    fn driver(&self) -> Result<Driver, ClustersError> {
        let constructed = match &self.driver {
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
        constructed.map_err(|source| ClustersError::Driver {
            cluster: self.name.clone(),
            source,
        })
    }
}

/// Adds the cluster's labels; a driver's own take precedence.
fn add_labels(labels: &mut BTreeMap<String, String>, cluster: &BTreeMap<String, String>) {
    for (key, value) in cluster {
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_is_read_and_an_unknown_driver_is_refused() {
        let read = |cluster: serde_json::Value| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("clusters.json");
            let text = serde_json::json!({ "clusters": [cluster] }).to_string();
            std::fs::write(&path, text).unwrap();
            super::read::<()>(&path).map(|specs| specs[0].driver_kind())
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
        assert_eq!(read(containerd).unwrap(), DriverKind::Containerd);
        assert_eq!(read(kubernetes).unwrap(), DriverKind::Kubernetes);
        assert_eq!(DriverKind::Kubernetes.to_string(), "kubernetes");
        assert!(read(serde_json::json!({ "name": "three", "driver": "docker" })).is_err());
    }

    #[test]
    fn invalid_cluster_name_is_refused() {
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
