//! Places for test instances, in the cache. A place keeps its images from run to run,
//! so that a test waits for no import; its lock says whether it is in use.

use std::fs::File;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{ContainerdError, Paths};

const SLOTS: u32 = 16;

/// A place that is ours for as long as this lives.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) paths: Paths,
    _lock: File,
}

impl Slot {
    /// The first free place.
    pub(crate) fn take(cache: &Path) -> Result<Self, ContainerdError> {
        for number in 0..SLOTS {
            let directory = cache.join("test-containerd").join(number.to_string());
            let failed = |source| ContainerdError::Directory {
                path: directory.clone(),
                source,
            };
            std::fs::create_dir_all(&directory).map_err(failed)?;
            let lock = File::create(directory.join("lock")).map_err(failed)?;
            if lock.try_lock().is_err() {
                continue;
            }
            // Two caches (two users) have a place of the same number.
            let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
            let paths = Paths {
                deployment: format!("test-{}", hex::encode(&digest[..4])),
                root: directory.join("root"),
                boxes: directory.join("boxes"),
            };
            return Ok(Self { paths, _lock: lock });
        }
        Err(ContainerdError::NoSlot(SLOTS))
    }
}
