//! `boxd remove-unfinished`: removes the file that a killed process of an operation has left.
//!
//! It has the user of that process, so that the kernel decides what it may remove, and reads the record of
//! the file from its stdin.
//!
//! * I1. It follows no link, also not one that has come into the place of a directory meanwhile. So it
//!   does not find the file when a process of the box has moved one of the directories.
//! * I2. It removes nothing but a file with a hidden name of boxd's, and the very file that an upload
//!   has created.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::sys::prctl;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;

use super::location::open_directory;
use super::record::{self, Noted, identity};
use super::temporary::{is_hidden_name, remove_hidden};

/// Removes the file that is noted in the record at stdin.
///
/// # Errors
/// When the record cannot be read, or the file cannot be removed.
pub fn run() -> io::Result<()> {
    // Executed from /proc/self/exe the process would be named "exe". Cosmetic: errors are ignored.
    let _ = prctl::set_name(c"boxd-files");
    let record = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    match record::read(&record)? {
        Some(noted) => remove(&noted),
        None => Ok(()),
    }
}

/// Removes the file. One that does not exist any more is no error.
fn remove(noted: &Noted) -> io::Result<()> {
    let mut names: Vec<&[u8]> = noted.path.split(|byte| *byte == b'/').collect();
    let name = names.pop().unwrap_or_default();
    let directory = match open_directories(&names) {
        Ok(directory) => directory,
        // Someone has removed or moved it.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    if let Some(expected) = noted.identity {
        return remove_same(&directory, name, expected).map_err(io::Error::from);
    }
    if !is_hidden_name(name) {
        let rule = "the name of a temporary file must be hidden";
        return Err(io::Error::new(io::ErrorKind::InvalidData, rule));
    }
    let removed = remove_hidden(directory.as_fd(), name, &noted.path);
    removed.map_err(|failure| io::Error::other(failure.message))
}

/// Removes the file unless another one has its name by now.
fn remove_same(
    directory: &OwnedFd,
    name: &[u8],
    expected: record::Identity,
) -> rustix::io::Result<()> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if identity(&stat) == expected => unlinkat(directory, name, AtFlags::empty()),
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Opens one directory after the other, from the root.
fn open_directories(names: &[&[u8]]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = open_directory(CWD, b"/")?;
    for name in names.iter().filter(|name| !name.is_empty()) {
        directory = openat(&directory, *name, flags, Mode::empty())?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::path::Path;

    use super::*;

    fn noted(path: &Path, identity: Option<record::Identity>) -> Noted {
        Noted {
            path: path.as_os_str().as_bytes().to_vec(),
            identity,
        }
    }

    #[test]
    fn hidden_files_and_trees_are_removed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let hidden = root.join("real/.agentbox-1");
        fs::create_dir_all(hidden.join("sub")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink(root.join("file"), hidden.join("sub/link")).unwrap();
        symlink("real", root.join("link")).unwrap();
        remove(&noted(&root.join("link/.agentbox-1"), None)).unwrap();
        assert!(hidden.exists());
        assert!(remove(&noted(&root.join("file"), None)).is_err());
        // The second time there is nothing.
        for _ in 0..2 {
            remove(&noted(&hidden, None)).unwrap();
            assert!(!hidden.exists());
        }
        assert!(root.join("file").exists());
    }

    #[test]
    fn created_file_is_removed_unless_another_one_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let path = root.join("file");
        fs::write(&path, "created").unwrap();
        let found = fs::metadata(&path).unwrap();
        let created = noted(&path, Some((found.dev(), found.ino())));
        fs::rename(&path, root.join("moved")).unwrap();
        fs::write(&path, "other").unwrap();
        remove(&created).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"other");
        fs::rename(root.join("moved"), &path).unwrap();
        remove(&created).unwrap();
        assert!(!path.exists());
    }
}
