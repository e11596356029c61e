//! Instances whose supervisor was killed. Every test instance removes them before it starts.
//!
//! An instance is stale when its lock is free: the kernel releases the lock of a process that
//! exits.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use agentbox_testing::paths::{Layout, TEST_DIRECTORY};
use agentbox_testing::state::State;

use crate::cleanup;
use crate::slot::Slot;

/// A directory younger than this may belong to a supervisor that has not locked it yet.
const MIN_AGE: Duration = Duration::from_secs(60);
/// How long the logs of a failed test are kept.
const LOG_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Removes all stale instances. What cannot be removed stays for the next start.
pub(crate) async fn remove_instances() {
    for (paths, _lock) in Slot::stale() {
        cleanup::remove(&paths).await;
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
    let min_age = if layout.keep_marker().exists() {
        LOG_RETENTION
    } else {
        MIN_AGE
    };
    if age < min_age || lock.try_lock().is_err() {
        return;
    }
    if let Some(state) = State::read(&layout.state()) {
        cleanup::unmount_postgres(&state.deployment);
    }
    cleanup::unmount_below(&[layout.directory()]);
    if cleanup::mounts_below(&[layout.directory()]).is_empty() {
        let _ = std::fs::remove_dir_all(layout.directory());
    }
}
