//! A temporary file beside its target, which becomes the target by a rename.
//!
//! * I1. The file has no name until it is complete, where the file system has such files
//!   (`O_TMPFILE`): then it is gone also when this process is killed. Elsewhere it has a hidden name,
//!   and is removed when it is dropped.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;
use uuid::Uuid;

use super::failure::{OnPath as _, Result};
use super::location::Location;

pub struct Temporary<'target> {
    target: &'target Location,
    pub file: File,
    /// The hidden name, while the file has one.
    name: Option<String>,
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
                    name: None,
                });
            }
        }
        let name = hidden_name();
        let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = openat(&target.directory, name.as_str(), flags, mode).on(&target.path)?;
        Ok(Self {
            target,
            file: File::from(file),
            name: Some(name),
        })
    }

    /// Makes the file the target; unless `replace`, only if there is none.
    ///
    /// # Errors
    /// As `rename(2)`: `EXIST` when there is a target that may not be replaced.
    pub fn publish(&mut self, replace: bool) -> rustix::io::Result<()> {
        let directory = self.target.directory.as_fd();
        let target = self.target.name.as_slice();
        let name = match self.name.clone() {
            Some(name) => name,
            None => {
                let name = hidden_name();
                let file = link_of(self.file.as_raw_fd());
                linkat(CWD, file, directory, name.as_str(), AtFlags::SYMLINK_FOLLOW)?;
                self.name = Some(name.clone());
                name
            }
        };
        if replace {
            renameat(directory, name.as_str(), directory, target)?;
        } else {
            let flags = RenameFlags::NOREPLACE;
            match renameat_with(directory, name.as_str(), directory, target, flags) {
                // A file system without this flag: a hard link replaces nothing either.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    let flags = AtFlags::empty();
                    linkat(directory, name.as_str(), directory, target, flags)?;
                    let _ = unlinkat(directory, name.as_str(), flags);
                }
                other => other?,
            }
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = unlinkat(&self.target.directory, name.as_str(), AtFlags::empty());
        }
    }
}

/// A name that no other file has, hidden from plain listings.
#[must_use]
pub fn hidden_name() -> String {
    format!(".agentbox-{}", Uuid::new_v4().simple())
}

fn link_of(descriptor: i32) -> String {
    format!("/proc/self/fd/{descriptor}")
}
