//! The clusters that are served.

use agentbox_clusters::ClusterSpec;
use serde::Deserialize;

use crate::boxes::Boxes;

/// A cluster that is served.
pub struct Cluster {
    /// As in the subjects of its sessions.
    pub name: String,
    pub boxes: Boxes,
}

/// Of a cluster in the clusters file, its name and driver are all that is read.
#[derive(Clone, Deserialize)]
pub struct Nothing {}

#[derive(Debug, thiserror::Error)]
#[error("the clusters file has no cluster `{0}`")]
pub struct UnknownCluster(String);

/// The clusters to serve: all of them, or `only`.
///
/// # Errors
/// When `only` is not among them.
pub fn chosen(
    specs: Vec<ClusterSpec<Nothing>>,
    only: Option<&str>,
) -> Result<Vec<ClusterSpec<Nothing>>, UnknownCluster> {
    let Some(only) = only.filter(|name| !name.is_empty()) else {
        return Ok(specs);
    };
    let specs: Vec<_> = specs.into_iter().filter(|spec| spec.name == only).collect();
    if specs.is_empty() {
        Err(UnknownCluster(only.to_owned()))
    } else {
        Ok(specs)
    }
}
