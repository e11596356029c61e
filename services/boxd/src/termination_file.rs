//! Bounds the file with the report of the main command's end.
//!
//! A process of boxd's user can write this file. On Kubernetes it is a file of the node's disk without
//! any limit: the kubelet mounts it into the box, whatever its path is, and counts it nowhere.
//!
//! * I1. A file that has become too large is emptied within [`INTERVAL`]. boxd holds it open from its
//!   start, so it needs no new descriptor for that.
//! * I2. It is looked at while the box has a process besides boxd, and once after that. A process that
//!   enters the box from outside it, as a debugger does, does not count.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::libc::{O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::reaper::{self, Reaper};
use crate::stderr;

/// The pause between two checks. No notification is used: a box may have used up its inotify
/// instances.
const INTERVAL: Duration = Duration::from_secs(1);
/// A report is far smaller. A block of some file systems is as large.
const MAX_BYTES: u64 = 64 * 1024;
/// The unit of [`std::os::unix::fs::MetadataExt::blocks`].
const BLOCK: u64 = 512;

/// Opens the file, which exists. Never waits, and follows no link.
///
/// # Errors
/// As `open(2)`.
pub fn open(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK | O_NOCTTY)
        .open(path)
}

/// Keeps the file small until `stop`.
pub async fn bound(file: File, reaper: Arc<Reaper>, stop: CancellationToken) {
    loop {
        // Before the file is looked at: what is started or ends meanwhile is looked at again.
        let started = reaper.next_start();
        let has_processes = reaper::has_processes();
        match empty_if_large(&file) {
            Ok(false) => {}
            Ok(true) => {
                stderr::line("boxd: emptied the termination file, which a process had filled")
            }
            Err(error) => stderr::line(&format!("boxd: bounding the termination file: {error}")),
        }
        let changed = async {
            match has_processes {
                true => sleep(INTERVAL).await,
                false => started.await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Empties the file if it is too large, also by blocks that were allocated beyond its end. Returns
/// whether it was.
fn empty_if_large(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let allocated = metadata.blocks().saturating_mul(BLOCK);
    if !metadata.is_file() || metadata.len().max(allocated) <= MAX_BYTES {
        return Ok(false);
    }
    file.set_len(0)?;
    // As `Termination::reserve`: the report needs no free space.
    file.write_all_at(b"\n", 0)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_file_is_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("termination");
        for (length, is_large) in [
            (1, false),
            (4096, false),
            (MAX_BYTES, false),
            (MAX_BYTES + 1, true),
            (1 << 30, true),
        ] {
            std::fs::write(&path, "\n").unwrap();
            let file = open(&path).unwrap();
            file.set_len(length).unwrap();
            assert_eq!(empty_if_large(&file).unwrap(), is_large, "{length}");
            let left = if is_large { 1 } else { length };
            assert_eq!(file.metadata().unwrap().len(), left, "{length}");
        }
    }
}
