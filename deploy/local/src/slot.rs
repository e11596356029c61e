//! Slots for test instances: directories in the cache, a fixed number for each kind of cluster.
//!
//! * I1. A slot keeps its images from run to run, so that a test waits for no import.
//! * I2. A slot is in use while its lock file is locked. The kernel releases the lock of a
//!   process that exits.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use agentbox_testing::paths::RUN_DIRECTORIES;
use agentbox_testing::private_file;
use sha2::{Digest, Sha256};

use crate::cluster_paths::ClusterPaths;

const SLOTS: u32 = 16;
/// The file in a run directory that contains the path of the slot's directory.
const SLOT_FILE: &str = "place";

/// No slot can be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error("cannot prepare {path}: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("all {0} slots for test instances are in use; wait until other tests have ended")]
    AllInUse(u32),
}

/// A slot that this process has locked.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) paths: ClusterPaths,
    _lock: File,
}

impl Slot {
    /// Locks the first free slot of a kind of cluster.
    pub(crate) fn take(cache: &Path, kind: &str) -> Result<Self, SlotError> {
        for number in 0..SLOTS {
            let directory = directory(cache, kind, number);
            let failed = |source| SlotError::Directory {
                path: directory.clone(),
                source,
            };
            std::fs::create_dir_all(&directory).map_err(failed)?;
            let lock = File::create(directory.join("lock")).map_err(failed)?;
            if lock.try_lock().is_ok() {
                return Ok(Self {
                    paths: paths(&directory),
                    _lock: lock,
                });
            }
        }
        Err(SlotError::AllInUse(SLOTS))
    }

    /// Records the slot in the run directory. This happens before objects exist that must be
    /// removed. Every instance finds the record there, even one with another cache.
    pub(crate) fn record(&self) -> Result<(), SlotError> {
        let run = self.paths.run();
        let directory = self.paths.root.parent().unwrap_or(&self.paths.root);
        let path = directory.as_os_str().as_encoded_bytes();
        std::fs::create_dir_all(&run)
            .and_then(|()| private_file::write(&run.join(SLOT_FILE), path))
            .map_err(|source| SlotError::Directory { path: run, source })
    }

    /// The slots whose supervisor was killed, each with its lock if the lock file exists.
    pub(crate) fn stale() -> Vec<(ClusterPaths, Option<File>)> {
        let runs = std::fs::read_dir(RUN_DIRECTORIES).into_iter().flatten();
        runs.flatten()
            .filter_map(|run| {
                let directory = std::fs::read(run.path().join(SLOT_FILE)).ok()?;
                let directory = PathBuf::from(OsString::from_vec(directory));
                let lock = File::open(directory.join("lock")).ok();
                let is_free = lock.as_ref().is_none_or(|lock| lock.try_lock().is_ok());
                is_free.then(|| (paths(&directory), lock))
            })
            .collect()
    }
}

fn directory(cache: &Path, kind: &str, number: u32) -> PathBuf {
    cache.join(format!("test-{kind}")).join(number.to_string())
}

fn paths(directory: &Path) -> ClusterPaths {
    // Named by the whole path: two caches (of two users) have slots of the same number.
    let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
    ClusterPaths {
        deployment: format!("test-{}", hex::encode(&digest[..4])),
        root: directory.join("root"),
        boxes: directory.join("boxes"),
    }
}
