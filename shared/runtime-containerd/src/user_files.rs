//! Ends reads of an image's user files that would never end.
//!
//! containerd and runc read an image's `/etc/passwd` and `/etc/group` to find the user of a
//! container. They wait for a writer if such a file is a FIFO: the call never ends, and containerd
//! keeps a temporary mount. A writer that opens the FIFO and closes it at once ends the read, and the
//! file counts as empty.
//!
//! [`crate::image_files`] refuses such an image before its container is created. This remains for
//! images that could not be checked.
//!
//! * I1. The image is not trusted: a path is resolved within the image's root, and nothing but a
//!   FIFO is opened.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc::O_NONBLOCK;

use crate::mountinfo;

/// The files of an image that containerd and runc read.
const FILES: [&str; 2] = ["etc/passwd", "etc/group"];
/// The prefix of containerd's temporary mounts.
const TEMPORARY: &str = "containerd-mount";
/// How long a call may last before waiting reads are ended. The kernel reports no such wait.
const INTERVAL: Duration = Duration::from_millis(500);

/// Waits for containerd to create a container.
pub async fn while_creating<T>(call: impl Future<Output = T>) -> T {
    let is_temporary = |mount: &Path| {
        let name = mount.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(TEMPORARY))
    };
    ending_reads(call, is_temporary).await
}

/// Waits for runc to start a container.
pub async fn while_starting<T>(container: &str, call: impl Future<Output = T>) -> T {
    let root = Path::new(container).join("rootfs");
    ending_reads(call, |mount| mount.ends_with(&root)).await
}

/// Waits for a call. If it takes long, reads of the user files below the chosen mounts are ended.
async fn ending_reads<T>(call: impl Future<Output = T>, is_chosen: impl Fn(&Path) -> bool) -> T {
    let mut call = pin!(call);
    loop {
        match tokio::time::timeout(INTERVAL, call.as_mut()).await {
            Ok(outcome) => return outcome,
            Err(_) => end_reads_below(&is_chosen),
        }
    }
}

fn end_reads_below(is_chosen: impl Fn(&Path) -> bool) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The fifth field is the mount point.
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4));
    for mount in mounts.map(mountinfo::path).filter(|mount| is_chosen(mount)) {
        for file in FILES {
            if let Ok(true) = end_read(&mount, file) {
                tracing::warn!(
                    mount = %mount.display(),
                    file,
                    "ended a read that waited for a FIFO of an image"
                );
            }
        }
    }
}

/// Ends the reads of a file that is a FIFO; `false` for any other file.
///
/// # Errors
/// As `open(2)`; `ENXIO` when nothing waits for the FIFO.
fn end_read(root: &Path, file: &str) -> io::Result<bool> {
    let root = File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = File::from(openat2(&root, file, how)?);
    if !found.metadata()?.file_type().is_fifo() {
        return Ok(false);
    }
    File::options()
        .write(true)
        .custom_flags(O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn read_of_a_fifo_ends_and_other_files_are_left() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        mkfifo(&root.path().join("fifo"), Mode::S_IRWXU).unwrap();
        // An absolute link stays within the root.
        std::os::unix::fs::symlink("/fifo", etc.join("passwd")).unwrap();
        std::fs::write(etc.join("group"), "root:x:0:").unwrap();
        assert!(!end_read(root.path(), "etc/group").unwrap());
        // Nothing waits yet.
        assert!(end_read(root.path(), "etc/passwd").is_err());
        let fifo = root.path().join("fifo");
        let reader = std::thread::spawn(move || std::fs::read(fifo).unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !end_read(root.path(), "etc/passwd").unwrap_or(false) {
            assert!(Instant::now() < deadline, "the reader never waits");
            std::thread::yield_now();
        }
        assert_eq!(reader.join().unwrap(), b"");
    }
}
