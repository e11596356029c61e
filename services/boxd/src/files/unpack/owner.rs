//! The owner of an unpacked directory or link, which has a name that others may change.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, openat};
use rustix::io::Errno;

use super::super::location::file_type;

/// Sets the owner of a directory or of a link itself. `BUSY` when it is of another kind: a process of the
/// box may have put a hard link to root's file into its place.
///
/// # Errors
/// As `openat(2)`, `fchownat(2)`.
pub fn give(
    directory: &OwnedFd,
    name: &[u8],
    kind: FileType,
    (owner, group): (Uid, Gid),
) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(directory, name, flags, Mode::empty())?;
    if file_type(&fstat(&opened)?) != kind {
        return Err(Errno::BUSY);
    }
    let (owner, group) = (Some(owner), Some(group));
    match chownat(&opened, "", owner, group, AtFlags::EMPTY_PATH) {
        // gVisor changes nothing through such a descriptor.
        Err(Errno::BADF) => chownat(directory, name, owner, group, AtFlags::SYMLINK_NOFOLLOW),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::process::{getegid, geteuid};

    use super::*;

    #[test]
    fn owner_is_set_only_on_the_kind_of_file_that_was_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let opened = OwnedFd::from(File::open(dir.path()).unwrap());
        let own = (geteuid(), getegid());
        let given = |name: &str, kind| give(&opened, name.as_bytes(), kind, own);
        assert_eq!(given("directory", FileType::Directory), Ok(()));
        assert_eq!(given("link", FileType::Symlink), Ok(()));
        for kind in [FileType::Directory, FileType::Symlink] {
            assert_eq!(given("file", kind), Err(Errno::BUSY));
        }
        assert_eq!(given("link", FileType::Directory), Err(Errno::BUSY));
    }
}
