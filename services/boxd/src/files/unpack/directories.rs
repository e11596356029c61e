//! The modes and times of unpacked directories, which are set when their entries are complete: a mode
//! may forbid to create entries, and each entry changes the time.

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, openat, utimensat,
};
use rustix::io::Errno;

use super::super::failure::{Failure, Result};
use super::super::location::open_directory;

/// The most directories that are kept.
const MAX_DIRECTORIES: usize = 10_000;

#[derive(Default)]
pub struct Directories(Vec<Directory>);

struct Directory {
    names: Vec<Vec<u8>>,
    mode: u32,
    modified: i64,
}

impl Directories {
    /// Keeps a directory; `false` when too many are kept already.
    pub fn add(&mut self, names: &[Vec<u8>], mode: u32, modified: i64) -> bool {
        if self.0.len() >= MAX_DIRECTORIES {
            return false;
        }
        self.0.push(Directory {
            names: names.to_vec(),
            mode,
            modified,
        });
        true
    }

    /// Sets the modes and times, the last first: a directory's own mode may forbid to enter it.
    ///
    /// # Errors
    /// As `fchmod(2)`.
    pub fn set_all(&mut self, root: &OwnedFd) -> Result<()> {
        while let Some(directory) = self.0.pop() {
            let Some((name, parents)) = directory.names.split_last() else {
                continue;
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut opened = open_directory(root, b".");
            for parent in parents {
                opened = opened
                    .and_then(|above| openat(&above, parent.as_slice(), flags, Mode::empty()));
            }
            // A process of the box has removed or replaced it.
            let Ok(above) = opened else { continue };
            // Without its time the directory is complete.
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let _ = utimensat(&above, name.as_slice(), &times(directory.modified), flags);
            match set_directory_mode(&above, name, directory.mode) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(Failure::of(name, errno)),
            }
        }
        Ok(())
    }
}

/// Through a descriptor of the directory itself, which is never a link.
///
/// # Errors
/// As `openat(2)`, `fchmod(2)`.
pub fn set_directory_mode(above: &OwnedFd, name: &[u8], mode: u32) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(above, name, flags, Mode::empty())?;
    fchmod(opened, Mode::from_raw_mode(mode))
}

/// The time of the last change, for utimensat(2).
#[must_use]
pub fn times(seconds: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
    }
}
