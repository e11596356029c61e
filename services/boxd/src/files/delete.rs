//! Deleting a file, a link itself, or a tree.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use agentbox_contracts::error::ErrorCode;
use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, Stat, chmod, fchmod, fstat, openat, statat, unlinkat,
};
use rustix::io::Errno;

use super::failure::{Failure, OnPath as _, Result};
use super::location::{Location, file_type};

/// The most levels of a tree. Each takes some bytes of memory, and no descriptor.
const MAX_LEVELS: usize = 100_000;

/// Deletes a file. A directory must be empty unless `recursive`.
///
/// # Errors
/// As `unlink(2)`, `rmdir(2)`.
pub fn delete(path: &[u8], recursive: bool) -> Result<()> {
    let location = Location::of(path)?;
    if file_type(&location.existing()?).is_dir() {
        if recursive {
            remove_tree(
                location.directory.as_fd(),
                &location.name,
                path,
                Modes::Kept,
            )
        } else {
            unlinkat(
                &location.directory,
                location.name.as_slice(),
                AtFlags::REMOVEDIR,
            )
            .on(path)
        }
    } else {
        unlinkat(
            &location.directory,
            location.name.as_slice(),
            AtFlags::empty(),
        )
        .on(path)
    }
}

/// A directory on the way from the tree's top to the present one.
struct Level {
    /// Its name in the level above.
    name: Vec<u8>,
    device: u64,
    inode: u64,
}

/// What happens to a directory whose mode keeps its owner from deleting its files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Modes {
    /// The deletion fails.
    Kept,
    /// Its owner gets all permissions first.
    Opened,
}

/// Deletes the directory `name` and everything below it. Links are not followed, and other file
/// systems are not entered. Only the present directory is open, so that no tree is too deep: the way
/// up is `..`, which must be the directory that it was on the way down.
///
/// # Errors
/// As `unlink(2)`, `rmdir(2)`; `Busy` when a directory is moved meanwhile, and for a mount point.
pub fn remove_tree(top: BorrowedFd<'_>, name: &[u8], path: &[u8], modes: Modes) -> Result<()> {
    let device = fstat(top).on(path)?.st_dev;
    let mut above = Vec::new();
    let (mut directory, mut level) = enter(top, name, None, path, modes)?;
    let own_device = level.device;
    // The top itself may be on another file system than its parent only when it is a mount point.
    if own_device != device {
        return Err(Failure::of(path, Errno::BUSY));
    }
    loop {
        match remove_files(&directory, path)? {
            Some(name) => {
                if above.len() >= MAX_LEVELS {
                    let rule = "has too many levels of directories";
                    return Err(Failure::at(path, ErrorCode::NameTooLong, rule));
                }
                let (below, found) =
                    enter(directory.as_fd(), &name, Some(own_device), path, modes)?;
                above.push(level);
                (directory, level) = (below, found);
            }
            None => match above.pop() {
                Some(parent) => {
                    directory = leave(&directory, &parent, path)?;
                    remove_directory(directory.as_fd(), &level.name, path)?;
                    level = parent;
                }
                None => return remove_directory(top, &level.name, path),
            },
        }
    }
}

/// Opens a directory of the tree.
fn enter(
    directory: BorrowedFd<'_>,
    name: &[u8],
    device: Option<u64>,
    path: &[u8],
    modes: Modes,
) -> Result<(OwnedFd, Level)> {
    let open = || openat(directory, name, DIRECTORY, Mode::empty());
    let opened = match open() {
        Err(Errno::ACCESS) if modes == Modes::Opened => {
            allow_reading(directory, name).on(path)?;
            open()
        }
        other => other,
    };
    let opened = opened.on(path)?;
    let stat = fstat(&opened).on(path)?;
    if device.is_some_and(|device| device != stat.st_dev) {
        let rule = "contains a mount point";
        return Err(Failure::at(path, ErrorCode::Busy, rule));
    }
    if modes == Modes::Opened && !Mode::from_raw_mode(stat.st_mode).contains(Mode::RWXU) {
        // Where it fails, the deletion of the first file does too.
        let _ = fchmod(&opened, Mode::RWXU);
    }
    let level = Level {
        name: name.to_vec(),
        device: stat.st_dev,
        inode: stat.st_ino,
    };
    Ok((opened, level))
}

/// Gives its owner all permissions on a directory that cannot be opened. By a descriptor, which is never
/// that of a link.
fn allow_reading(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(directory, name, flags, Mode::empty())?;
    chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), Mode::RWXU)
}

/// Never a link, and never another kind of file.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn leave(directory: &OwnedFd, parent: &Level, path: &[u8]) -> Result<OwnedFd> {
    let opened = openat(directory, "..", DIRECTORY, Mode::empty()).on(path)?;
    let stat = fstat(&opened).on(path)?;
    if (stat.st_dev, stat.st_ino) != (parent.device, parent.inode) {
        let rule = "was changed while it was deleted";
        return Err(Failure::at(path, ErrorCode::Busy, rule));
    }
    Ok(opened)
}

/// Deletes the files of a directory until it finds a directory, whose name it returns. `None`: the
/// directory is empty.
fn remove_files(directory: &OwnedFd, path: &[u8]) -> Result<Option<Vec<u8>>> {
    loop {
        let mut removed = false;
        for entry in Dir::read_from(directory).on(path)? {
            let entry = entry.on(path)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(Failure::of(path, errno)),
            };
            if is_directory(&stat) {
                return Ok(Some(name.to_bytes().to_vec()));
            }
            match unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => removed = true,
                Err(errno) => return Err(Failure::of(path, errno)),
            }
        }
        // A listing during changes may miss entries, so that the last one finds nothing.
        if !removed {
            return Ok(None);
        }
    }
}

fn is_directory(stat: &Stat) -> bool {
    file_type(stat).is_dir()
}

fn remove_directory(directory: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
    match unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Failure::of(path, errno)),
    }
}
