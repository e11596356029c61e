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

use agentbox_runtime_containerd as containerd;
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
        source: containerd::ConnectError,
    },
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
    Containerd { containerd: containerd::Config },
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
        }
    }

    /// The cluster's driver. Does not wait for the cluster itself: one that is down
    /// answers that it is unavailable, and comes back.
    ///
    /// # Errors
    /// When the driver's configuration cannot be used here, or not yet.
    pub fn connect(&self) -> Result<containerd::Driver, ClustersError> {
        let DriverSpec::Containerd { containerd } = &self.driver;
        let mut config = containerd.clone();
        for (key, value) in &self.labels {
            let own = config.labels.entry(key.clone());
            own.or_insert_with(|| value.clone());
        }
        containerd::Driver::connect(config).map_err(|source| ClustersError::Driver {
            cluster: self.name.clone(),
            source,
        })
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
