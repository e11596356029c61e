//! The pools file: the pools of the deployment's configuration.
//!
//! ```json
//! {"pools": {"python": {
//!     "image": "python:3.11-slim",
//!     "resources": {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"},
//!     "min_ready": 2, "max_ready": 8
//! }}}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agentbox_contracts::environment::{Isolation, ResourceRequest};
use agentbox_contracts::error::Error;
use agentbox_contracts::pool::{PoolSource, PoolSpec};
use serde::Deserialize;

use crate::environment::store::{Store, StoreError};
use crate::pool::request::{canonical_resources, validate};

#[derive(Debug, thiserror::Error)]
pub enum PoolsFileError {
    #[error("the pools file `{}` cannot be read", .path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the pools file `{}` is invalid", .path.display())]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("the pools file: pool `{pool}`")]
    Invalid { pool: String, source: Error },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pools: BTreeMap<String, ConfiguredPool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfiguredPool {
    image: String,
    resources: ConfiguredResources,
    #[serde(default)]
    isolation: Option<Isolation>,
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
    #[serde(default)]
    cluster: Option<String>,
    min_ready: u32,
    max_ready: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfiguredResources {
    cpu: String,
    memory: String,
    storage: String,
}

impl From<ConfiguredPool> for PoolSpec {
    fn from(pool: ConfiguredPool) -> Self {
        Self {
            image: pool.image,
            resources: ResourceRequest {
                cpu: pool.resources.cpu,
                memory: pool.resources.memory,
                storage: pool.resources.storage,
            },
            isolation: pool.isolation,
            node_selector: pool.node_selector,
            cluster: pool.cluster,
            min_ready: pool.min_ready,
            max_ready: pool.max_ready,
        }
    }
}

/// Reads the pools file.
///
/// # Errors
/// When it cannot be read, is malformed, or a pool breaks a rule.
pub fn read(path: &Path) -> Result<BTreeMap<String, PoolSpec>, PoolsFileError> {
    let text = std::fs::read(path).map_err(|source| PoolsFileError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let file: File = serde_json::from_slice(&text).map_err(|source| PoolsFileError::Malformed {
        path: path.to_owned(),
        source,
    })?;
    let mut pools = BTreeMap::new();
    for (name, pool) in file.pools {
        let mut spec = PoolSpec::from(pool);
        match validate(&name, &spec) {
            Ok(quantities) => spec.resources = canonical_resources(quantities),
            Err(source) => return Err(PoolsFileError::Invalid { pool: name, source }),
        }
        pools.insert(name, spec);
    }
    Ok(pools)
}

/// Stores the pools of the configuration, and deletes those that are no longer in it.
///
/// # Errors
/// When there are too many pools, or the database fails.
pub async fn apply(store: &Store, pools: &BTreeMap<String, PoolSpec>) -> Result<(), StoreError> {
    for stored in store.pools().await? {
        if stored.source == PoolSource::Configuration && !pools.contains_key(&stored.name) {
            store
                .delete_pool(&stored.name, PoolSource::Configuration)
                .await?;
        }
    }
    for (name, spec) in pools {
        let resources = spec.resources.clone();
        store
            .set_pool(name, spec, resources, PoolSource::Configuration)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<BTreeMap<String, PoolSpec>, PoolsFileError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pools.json");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn pools_file_is_read_with_canonical_resources() {
        let pools = read_text(
            r#"{"pools": {"python": {"image": "python:3.11-slim",
                "resources": {"cpu": "0.5", "memory": "0.5Gi", "storage": "1Gi"},
                "min_ready": 2, "max_ready": 8}}}"#,
        )
        .unwrap();
        assert_eq!(pools["python"].resources.memory, "512Mi");
        assert_eq!(pools["python"].max_ready, 8);
        assert!(read_text(r#"{"pools": {}}"#).unwrap().is_empty());
    }

    #[test]
    fn invalid_pools_file_is_refused() {
        let pool = |extra: &str| {
            format!(
                r#"{{"pools": {{"python": {{"image": "busybox",
                    "resources": {{"cpu": "1", "memory": "1Gi", "storage": "1Gi"}},
                    "min_ready": 2, "max_ready": {extra}}}}}}}"#
            )
        };
        assert!(read_text(&pool("2")).is_ok());
        let invalid = read_text(&pool("1")).unwrap_err();
        assert!(
            matches!(invalid, PoolsFileError::Invalid { .. }),
            "{invalid}"
        );
        for text in ["", "[]", &pool("2, \"size\": 3")] {
            let malformed = read_text(text).unwrap_err();
            assert!(
                matches!(malformed, PoolsFileError::Malformed { .. }),
                "{text}: {malformed}"
            );
        }
    }
}
