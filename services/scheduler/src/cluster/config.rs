//! The clusters file, shared with the exec-proxies:
//! `{"clusters":[{"name":"local","driver":"containerd","labels":{},"containerd":{…}}]}`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use agentbox_runtime::Runtime;
use agentbox_runtime_containerd as containerd;
use serde::Deserialize;

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
    #[error("cluster `{0}`: overcommit must be at least 1, or 0 for no check")]
    Overcommit(String),
    #[error("the clusters file names no cluster")]
    Empty,
    #[error("the driver of cluster `{name}` cannot be made")]
    Driver {
        name: String,
        source: containerd::ConnectError,
    },
}

/// How often a cluster's CPU and memory are promised. Limits are what a box may use at
/// most, and few boxes do so at the same time. 0: the cluster checks for itself.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overcommit {
    pub cpu: f64,
    pub memory: f64,
}

impl Default for Overcommit {
    fn default() -> Self {
        Self {
            cpu: 20.0,
            memory: 4.0,
        }
    }
}

/// One cluster of the file.
#[derive(Clone, Deserialize)]
pub struct ClusterConfig {
    pub name: String,
    /// Matched against a request's `node_selector` before the nodes' own labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub overcommit: Overcommit,
    #[serde(flatten)]
    driver: Driver,
}

#[derive(Clone, Deserialize)]
#[serde(tag = "driver", rename_all = "lowercase")]
enum Driver {
    Containerd { containerd: containerd::Config },
}

#[derive(Deserialize)]
struct File {
    clusters: Vec<ClusterConfig>,
}

/// Reads the clusters file.
///
/// # Errors
/// When it cannot be read, is malformed, or names a cluster badly or twice.
pub fn read(path: &Path) -> Result<Vec<ClusterConfig>, ClustersError> {
    let shown = || path.display().to_string();
    let text = std::fs::read(path).map_err(|source| ClustersError::Unreadable {
        path: shown(),
        source,
    })?;
    let file: File = serde_json::from_slice(&text).map_err(|source| ClustersError::Malformed {
        path: shown(),
        source,
    })?;
    check_names(file.clusters.iter().map(|cluster| cluster.name.as_str()))?;
    for cluster in &file.clusters {
        let sound = |ratio: f64| ratio == 0.0 || (ratio >= 1.0 && ratio.is_finite());
        if !sound(cluster.overcommit.cpu) || !sound(cluster.overcommit.memory) {
            return Err(ClustersError::Overcommit(cluster.name.clone()));
        }
    }
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

impl ClusterConfig {
    #[must_use]
    pub const fn driver_name(&self) -> &'static str {
        match self.driver {
            Driver::Containerd { .. } => "containerd",
        }
    }

    /// The cluster's driver. Does not wait for the cluster itself: one that is down
    /// answers that it is unavailable, and comes back.
    ///
    /// # Errors
    /// When the driver's configuration cannot be used here.
    pub fn connect(&self) -> Result<Arc<dyn Runtime>, ClustersError> {
        let Driver::Containerd { containerd } = &self.driver;
        let driver = containerd::Driver::connect(containerd.clone()).map_err(|source| {
            ClustersError::Driver {
                name: self.name.clone(),
                source,
            }
        })?;
        Ok(Arc::new(driver))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
