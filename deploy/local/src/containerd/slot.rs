//! Places for test instances, in the cache, so many for each kind of cluster. A place keeps
//! its images from run to run, so that a test waits for no import; its lock says whether it
//! is in use.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{ContainerdError, Paths, RUN_DIRECTORIES};
use crate::secrets::write_private;

const SLOTS: u32 = 16;
/// In the run directory of an instance: the directory of its place.
const PLACE: &str = "place";

/// A place that is ours for as long as this lives.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) paths: Paths,
    _lock: File,
}

impl Slot {
    /// The first free place of a kind.
    pub(crate) fn take(cache: &Path, kind: &str) -> Result<Self, ContainerdError> {
        for number in 0..SLOTS {
            let directory = directory(cache, kind, number);
            let failed = |source| ContainerdError::Directory {
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
        Err(ContainerdError::NoSlot(SLOTS))
    }

    /// From now on something may be left. Where the place is is written where the next
    /// instance looks, whichever cache it has, and may look at any moment.
    pub(crate) fn occupy(&self) -> Result<(), ContainerdError> {
        let run = self.paths.run();
        let place = self.paths.root.parent().unwrap_or(&self.paths.root);
        std::fs::create_dir_all(&run)
            .and_then(|()| write_private(&run.join(PLACE), place.as_os_str().as_encoded_bytes()))
            .map_err(|source| ContainerdError::Directory { path: run, source })
    }

    /// What killed supervisors left, with the lock of its place, if that still exists.
    pub(crate) fn abandoned() -> Vec<(Paths, Option<File>)> {
        let runs = std::fs::read_dir(RUN_DIRECTORIES).into_iter().flatten();
        runs.flatten()
            .filter_map(|run| {
                let place = std::fs::read(run.path().join(PLACE)).ok()?;
                let place = PathBuf::from(OsString::from_vec(place));
                let lock = File::open(place.join("lock")).ok();
                let is_free = lock.as_ref().is_none_or(|lock| lock.try_lock().is_ok());
                is_free.then(|| (paths(&place), lock))
            })
            .collect()
    }
}

fn directory(cache: &Path, kind: &str, number: u32) -> PathBuf {
    cache.join(format!("test-{kind}")).join(number.to_string())
}

fn paths(directory: &Path) -> Paths {
    // Two caches (two users) have a place of the same number.
    let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
    Paths {
        deployment: format!("test-{}", hex::encode(&digest[..4])),
        root: directory.join("root"),
        boxes: directory.join("boxes"),
    }
}
