//! Opens files that the box's user may have replaced.
//!
//! Never follows a link in the last component, never waits on a FIFO, never reads a device:
//! anything but a regular file is an error.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

/// Opens a regular file for reading.
///
/// # Errors
/// As `open(2)`; `InvalidInput` when it is not a regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    checked(File::options().read(true), path)
}

/// Opens a regular file for writing, with the content that it has. Creates it if there is none.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    checked(options.write(true).create(true).truncate(false), path)
}

fn checked(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options
        .custom_flags(O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}
