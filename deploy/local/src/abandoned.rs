//! What killed test programs and supervisors left on this machine. Every test instance
//! removes it before it starts, whoever it was of: the owner cannot any more.
//!
//! Owned means locked, and the kernel frees the lock of a process that ends.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use crate::containerd::leftovers;
use crate::containerd::slot::Slot;
use crate::plan::{Layout, TEST_DIRECTORY};
use crate::state::State;

/// Between making its directory and locking it an owner needs less.
const SETTLED: Duration = Duration::from_secs(60);
/// The logs of a failed test are kept for a person, who comes soon or not at all.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Removes it. What cannot be removed stays for the next one.
pub(crate) async fn remove() {
    for (paths, _lock) in Slot::abandoned() {
        leftovers::remove(&paths).await;
    }
    for directory in directories() {
        remove_directory(&Layout::new(directory));
    }
}

fn directories() -> Vec<PathBuf> {
    std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let is_ours = entry
                .file_name()
                .to_string_lossy()
                .starts_with(TEST_DIRECTORY);
            is_ours && entry.file_type().is_ok_and(|kind| kind.is_dir())
        })
        .map(|entry| entry.path())
        .collect()
}

fn remove_directory(layout: &Layout) {
    let Ok(lock) = File::open(layout.lock()) else {
        return;
    };
    let age = lock
        .metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|since| since.elapsed().ok())
        .unwrap_or_default();
    let enough = if layout.keep_marker().exists() {
        KEPT
    } else {
        SETTLED
    };
    if age < enough || lock.try_lock().is_err() {
        return;
    }
    if let Some(state) = State::read(&layout.state()) {
        leftovers::release_postgres(&state.deployment);
    }
    leftovers::unmount_below(&[layout.directory()]);
    if leftovers::mounts_below(&[layout.directory()]).is_empty() {
        let _ = std::fs::remove_dir_all(layout.directory());
    }
}
