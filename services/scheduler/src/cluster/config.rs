//! What the scheduler reads of a cluster in the clusters file, beside its name and driver.

use std::path::Path;

use agentbox_clusters::{ClusterSpec, ClustersError};
use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
pub enum ClusterConfigError {
    #[error(transparent)]
    Clusters(#[from] ClustersError),
    #[error("cluster `{0}`: overcommit must be at least 1, or 0 for no check")]
    Overcommit(String),
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

/// The scheduler's part of one cluster.
#[derive(Clone, Deserialize)]
pub struct Placing {
    #[serde(default)]
    pub overcommit: Overcommit,
}

/// Reads the clusters file.
///
/// # Errors
/// As [`agentbox_clusters::read`], and when an overcommit makes no sense.
pub fn read(path: &Path) -> Result<Vec<ClusterSpec<Placing>>, ClusterConfigError> {
    let clusters = agentbox_clusters::read::<Placing>(path)?;
    let sound = |ratio: f64| ratio == 0.0 || (ratio >= 1.0 && ratio.is_finite());
    for cluster in &clusters {
        let Overcommit { cpu, memory } = cluster.extra.overcommit;
        if !sound(cpu) || !sound(memory) {
            return Err(ClusterConfigError::Overcommit(cluster.name.clone()));
        }
    }
    Ok(clusters)
}
