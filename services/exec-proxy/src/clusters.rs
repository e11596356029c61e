//! The served clusters.

use agentbox_clusters::ClusterSpec;

use crate::boxes::Boxes;

/// A served cluster.
pub struct Cluster {
    /// The name in the subjects of its sessions.
    pub name: String,
    pub boxes: Boxes,
}

#[derive(Debug, thiserror::Error)]
#[error("the clusters file has no cluster `{0}`")]
pub struct UnknownCluster(String);

/// Selects the clusters to serve: all of them, or `only`.
///
/// # Errors
/// When `only` is not among them.
pub fn select(
    specs: Vec<ClusterSpec<()>>,
    only: Option<&str>,
) -> Result<Vec<ClusterSpec<()>>, UnknownCluster> {
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
