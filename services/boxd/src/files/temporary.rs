//! A temporary file beside its target, which becomes the target by a rename.
//!
//! * I1. The file has no name until it is complete, where the file system has such files
//!   (`O_TMPFILE`): then it is gone also when this process is killed. Elsewhere, and for the moment in
//!   which it replaces another file, it has a hidden name. It is removed when it is dropped.
//! * I2. A hidden name is noted before it exists ([`record`]), so that boxd has the file removed when
//!   this process is killed.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;
use uuid::Uuid;

use super::delete::{Modes, remove_tree};
use super::failure::{Failure, OnPath as _, Result};
use super::location::Location;
use super::record;

/// The beginning of each hidden name.
const HIDDEN_PREFIX: &str = ".agentbox-";

pub struct Temporary<'target> {
    target: &'target Location,
    pub file: File,
    /// The hidden name, while the file has one.
    hidden: Option<Hidden<'target>>,
}

impl<'target> Temporary<'target> {
    /// Creates an empty file that only its owner may use.
    ///
    /// # Errors
    /// As `openat(2)`.
    pub fn beside(target: &'target Location) -> Result<Self> {
        let mode = Mode::from_raw_mode(0o600);
        let access = OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(file) = openat(&target.directory, ".", access | OFlags::TMPFILE, mode) {
            // The name comes by way of `/proc`.
            if statat(CWD, link_of(file.as_raw_fd()), AtFlags::empty()).is_ok() {
                return Ok(Self {
                    target,
                    file: File::from(file),
                    hidden: None,
                });
            }
        }
        let hidden = Hidden::note(target).on(&target.path)?;
        let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = openat(&target.directory, hidden.name(), flags, mode).on(&target.path)?;
        Ok(Self {
            target,
            file: File::from(file),
            hidden: Some(hidden),
        })
    }

    /// Makes the file the target, and returns it; unless `replace`, only if there is none.
    ///
    /// # Errors
    /// As `rename(2)`: `EXIST` when there is a target that may not be replaced.
    pub fn publish(self, replace: bool) -> rustix::io::Result<File> {
        let Self {
            target,
            file,
            hidden,
        } = self;
        let hidden = match hidden {
            Some(hidden) => hidden,
            None => {
                let link = link_of(file.as_raw_fd());
                let give_name = |name: &[u8]| {
                    let flags = AtFlags::SYMLINK_FOLLOW;
                    linkat(CWD, link.as_str(), &target.directory, name, flags)
                };
                match give_name(&target.name) {
                    Ok(()) => return Ok(file),
                    Err(Errno::EXIST) if replace => {}
                    Err(errno) => return Err(errno),
                }
                let hidden = Hidden::note(target)?;
                give_name(hidden.name())?;
                hidden
            }
        };
        hidden.publish(replace)?;
        Ok(file)
    }
}

/// A hidden name beside a target, for something that becomes the target by a rename. It is noted from
/// before it exists until it is gone, and what has it is removed when it is dropped.
pub struct Hidden<'target> {
    target: &'target Location,
    name: String,
}

impl<'target> Hidden<'target> {
    /// A new name, which nothing has yet.
    ///
    /// # Errors
    /// As [`record::note`].
    pub fn note(target: &'target Location) -> rustix::io::Result<Self> {
        let name = format!("{HIDDEN_PREFIX}{}", Uuid::new_v4().simple());
        record::note(&target.directory, name.as_bytes(), None)?;
        Ok(Self { target, name })
    }

    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.name.as_bytes()
    }

    /// Makes what has the name the target; unless `replace`, only if there is none.
    ///
    /// # Errors
    /// As `rename(2)`: `EXIST` when there is a target that may not be replaced.
    pub fn publish(self, replace: bool) -> rustix::io::Result<()> {
        let (directory, name) = (self.target.directory.as_fd(), self.name());
        let target = self.target.name.as_slice();
        if replace {
            return renameat(directory, name, directory, target);
        }
        match renameat_with(directory, name, directory, target, RenameFlags::NOREPLACE) {
            // A file system without this flag.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            other => return other,
        }
        // A hard link replaces nothing either. The hidden name is removed when it is dropped.
        match linkat(directory, name, directory, target, AtFlags::empty()) {
            // A directory, or a file system without hard links.
            Err(Errno::PERM | Errno::OPNOTSUPP) => {
                match statat(directory, target, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(Errno::EXIST),
                    Err(Errno::NOENT) => renameat(directory, name, directory, target),
                    Err(errno) => Err(errno),
                }
            }
            other => other,
        }
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let directory = self.target.directory.as_fd();
        let _ = remove_hidden(directory, self.name(), &self.target.path);
        let _ = record::clear();
    }
}

/// Whether the name is one of boxd's for temporary files.
#[must_use]
pub fn is_hidden_name(name: &[u8]) -> bool {
    name.starts_with(HIDDEN_PREFIX.as_bytes())
}

/// Removes a temporary file, link or tree, if it exists.
///
/// # Errors
/// As `unlink(2)`, `rmdir(2)`.
pub fn remove_hidden(directory: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => remove_tree(directory, name, path, Modes::Opened),
        Err(errno) => Err(Failure::of(path, errno)),
    }
}

fn link_of(descriptor: i32) -> String {
    format!("/proc/self/fd/{descriptor}")
}
