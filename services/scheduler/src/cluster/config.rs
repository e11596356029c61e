//! The scheduler's own fields of a cluster in the clusters file.

use std::path::Path;

use agentbox_clusters::{ClusterSpec, ClustersError};
use serde::Deserialize;

use crate::cluster::registries::AllowedRegistries;

#[derive(Debug, thiserror::Error)]
pub enum ClusterConfigError {
    #[error(transparent)]
    Clusters(#[from] ClustersError),
    #[error(
        "cluster `{cluster}`: overcommit.{field} must be 0 (no check) or a finite number of at \
         least 1, got {value}"
    )]
    Overcommit {
        cluster: String,
        field: &'static str,
        value: f64,
    },
}

/// How many times a cluster's CPU, memory and storage may be reserved. Boxes reserve their limits,
/// which few of them use at the same time. 0: the scheduler does not limit reservations.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overcommit {
    pub cpu: f64,
    pub memory: f64,
    pub storage: f64,
}

impl Default for Overcommit {
    fn default() -> Self {
        Self {
            cpu: 20.0,
            memory: 4.0,
            storage: 4.0,
        }
    }
}

/// The scheduler's fields of one cluster.
#[derive(Clone, Deserialize)]
pub struct PlacementConfig {
    #[serde(default)]
    pub overcommit: Overcommit,
    #[serde(default)]
    pub allowed_registries: AllowedRegistries,
}

/// Reads the clusters file.
///
/// # Errors
/// As [`agentbox_clusters::read`], and when an overcommit is out of range.
pub fn read(path: &Path) -> Result<Vec<ClusterSpec<PlacementConfig>>, ClusterConfigError> {
    let clusters = agentbox_clusters::read::<PlacementConfig>(path)?;
    let is_valid = |ratio: f64| ratio == 0.0 || (ratio >= 1.0 && ratio.is_finite());
    for cluster in &clusters {
        let Overcommit {
            cpu,
            memory,
            storage,
        } = cluster.extra.overcommit;
        for (field, value) in [("cpu", cpu), ("memory", memory), ("storage", storage)] {
            if !is_valid(value) {
                return Err(ClusterConfigError::Overcommit {
                    cluster: cluster.name.clone(),
                    field,
                    value,
                });
            }
        }
    }
    Ok(clusters)
}
