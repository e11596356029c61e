//! The clusters that are served, and the drivers that reach their boxes.
//!
//! The clusters file is shared with the scheduler:
//! `{"clusters":[{"name":"local","driver":"containerd","labels":{},"containerd":{…}}]}`.

use std::path::Path;
use std::sync::Arc;

use agentbox_runtime::BoxConnector;
use agentbox_runtime_containerd as containerd;
use serde::Deserialize;

use crate::boxes::Boxes;

/// A cluster that is served.
pub struct Cluster {
    /// As in the subjects of its sessions.
    pub name: String,
    pub boxes: Boxes,
}

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
    #[error("the clusters file has no cluster `{0}`")]
    Unknown(String),
    #[error("the clusters file names no cluster")]
    Empty,
    #[error("the driver of cluster `{cluster}` cannot be used")]
    Driver {
        cluster: String,
        source: containerd::ConnectError,
    },
}

#[derive(Clone, Deserialize)]
struct File {
    clusters: Vec<Spec>,
}

/// One cluster of the file. What only the scheduler needs is not read.
#[derive(Clone, Deserialize)]
pub struct Spec {
    pub name: String,
    #[serde(flatten)]
    driver: Driver,
}

#[derive(Clone, Deserialize)]
#[serde(tag = "driver", rename_all = "lowercase")]
enum Driver {
    Containerd { containerd: containerd::Config },
}

/// Reads the clusters file.
///
/// # Errors
/// When it cannot be read, is malformed, or names a cluster badly or twice.
pub fn read(path: &Path) -> Result<Vec<Spec>, ClustersError> {
    let shown = || path.display().to_string();
    let text = std::fs::read(path).map_err(|source| ClustersError::Unreadable {
        path: shown(),
        source,
    })?;
    let file: File = serde_json::from_slice(&text).map_err(|source| ClustersError::Malformed {
        path: shown(),
        source,
    })?;
    check_names(file.clusters.iter().map(|spec| spec.name.as_str()))?;
    Ok(file.clusters)
}

/// Names become tokens of subjects.
fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), ClustersError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
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

/// The clusters to serve: all of them, or `only`.
///
/// # Errors
/// [`ClustersError::Unknown`] when `only` is not among them.
pub fn chosen(specs: Vec<Spec>, only: Option<&str>) -> Result<Vec<Spec>, ClustersError> {
    let Some(only) = only.filter(|name| !name.is_empty()) else {
        return Ok(specs);
    };
    let specs: Vec<Spec> = specs.into_iter().filter(|spec| spec.name == only).collect();
    if specs.is_empty() {
        Err(ClustersError::Unknown(only.to_owned()))
    } else {
        Ok(specs)
    }
}

/// Makes the cluster's driver. Whether the cluster answers shows when a box is reached.
///
/// # Errors
/// [`ClustersError::Driver`] when the driver cannot work here, or not yet.
pub fn connect(spec: &Spec) -> Result<Arc<dyn BoxConnector>, ClustersError> {
    let Driver::Containerd { containerd } = &spec.driver;
    let driver = containerd::Driver::connect(containerd.clone()).map_err(|source| {
        ClustersError::Driver {
            cluster: spec.name.clone(),
            source,
        }
    })?;
    Ok(Arc::new(driver))
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
