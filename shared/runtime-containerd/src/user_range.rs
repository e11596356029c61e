//! The user and group ids of this machine that a box's user namespace uses: 65,536 for each box.
//!
//! * I1. Two boxes of this machine have different ids, whatever their deployments. A symbolic link to
//!   the box's directory holds a range, in a directory that all drivers of the machine share.
//! * I2. A range is free as soon as the directory that its link leads to is gone, so that nothing
//!   has to be given back, also after a killed call.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::Path;

use k8s_cri::v1::{IdMapping, NamespaceMode, UserNamespace};
use nix::fcntl::{Flock, FlockArg};

/// The directory of the links. A reboot, which ends every box, empties it.
const DIRECTORY: &str = "/run/agentbox-user-ranges";
/// The number of ids in a range.
pub const LENGTH: u32 = 65_536;
/// The first id of the first range. systemd and subuid(5) do not use the ids from here on.
const FIRST: u32 = 0x7000_0000;
/// The number of ranges. systemd uses the ids above them.
const RANGES: u32 = 4_094;

/// The ids of one box: the machine's ids from `first` on are the box's from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRange {
    pub first: u32,
}

impl UserRange {
    fn of_number(number: u32) -> Self {
        Self {
            first: FIRST + number * LENGTH,
        }
    }

    /// The CRI options of a pod's own user namespace with this range.
    pub fn namespace(self) -> UserNamespace {
        let mapping = IdMapping {
            host_id: self.first,
            container_id: 0,
            length: LENGTH,
        };
        UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: vec![mapping],
            gids: vec![mapping],
        }
    }
}

/// Takes a range for the box with this directory, which exists; the one it has, if it has one.
///
/// # Errors
/// When all ranges are in use, or the links cannot be read or written.
pub fn take(directory: &Path) -> io::Result<UserRange> {
    take_in(Path::new(DIRECTORY), directory)
}

fn take_in(links: &Path, directory: &Path) -> io::Result<UserRange> {
    // Closed to the machine's other users: one who can open the lock can hold it.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(links)?;
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(links.join("lock"))?;
    // Held for a few system calls only.
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let start = number_of(directory);
    for offset in 0..RANGES {
        let number = (start + offset) % RANGES;
        let link = links.join(number.to_string());
        match std::fs::read_link(&link) {
            Ok(holder) if holder == directory => return Ok(UserRange::of_number(number)),
            // Follows the link.
            Ok(_) if link.exists() => continue,
            Ok(_) => std::fs::remove_file(&link)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        symlink(directory, &link)?;
        return Ok(UserRange::of_number(number));
    }
    Err(io::Error::other(format!(
        "all {RANGES} ranges of user ids are in use"
    )))
}

/// Where the search begins: the same for each call for a box (FNV-1a).
fn number_of(directory: &Path) -> u32 {
    let bytes = directory.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    hash % RANGES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_have_different_ranges_and_keep_theirs() {
        let root = tempfile::tempdir().unwrap();
        let links = root.path().join("links");
        let take_for = |name: u32| {
            let directory = root.path().join(format!("box-{name}"));
            std::fs::create_dir_all(&directory).unwrap();
            take_in(&links, &directory).unwrap().first
        };
        let first: Vec<u32> = (0..100).map(take_for).collect();
        let again: Vec<u32> = (0..100).map(take_for).collect();
        assert_eq!(first, again);
        let distinct: std::collections::BTreeSet<u32> = first.iter().copied().collect();
        assert_eq!(distinct.len(), 100);
        let end = u64::from(FIRST) + u64::from(RANGES) * u64::from(LENGTH);
        assert!(end <= 0x7FFE_0000);
        for id in first {
            assert!(id >= LENGTH && id % LENGTH == 0, "{id}");
        }
    }

    #[test]
    fn range_of_a_removed_box_is_free() {
        let root = tempfile::tempdir().unwrap();
        let (links, directory) = (root.path().join("links"), root.path().join("box"));
        std::fs::create_dir_all(&links).unwrap();
        std::fs::create_dir(&directory).unwrap();
        // The box whose range is the first that the search finds.
        let gone = root.path().join("gone");
        let link = links.join(number_of(&directory).to_string());
        symlink(&gone, &link).unwrap();
        let range = take_in(&links, &directory).unwrap();
        assert_eq!(range, UserRange::of_number(number_of(&directory)));
        assert_eq!(std::fs::read_link(&link).unwrap(), directory);
    }
}
