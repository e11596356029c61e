//! `/dev/null`, the stdin of commands that have none.
//!
//! Root in the box may put another file into its place, also one whose opening never returns. So boxd
//! opens the device once, before it starts a command, and gives each command a duplicate.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use rustix::fs::{major, minor};

const PATH: &str = "/dev/null";
/// The major and the minor number.
const NUMBERS: (u32, u32) = (1, 3);

/// The opened device, for reading.
pub struct NullDevice(File);

impl NullDevice {
    /// Opens the device. Never waits, whatever is in its place.
    ///
    /// # Errors
    /// As `open(2)`; `InvalidInput` for any other file.
    pub fn open() -> io::Result<Self> {
        Self::at(Path::new(PATH))
    }

    fn at(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .custom_flags(O_NONBLOCK | O_NOCTTY)
            .open(path)?;
        let metadata = file.metadata()?;
        let numbers = (major(metadata.rdev()), minor(metadata.rdev()));
        if !metadata.file_type().is_char_device() || numbers != NUMBERS {
            let rule = format!("{}: must be the null device", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, rule));
        }
        // The duplicates share the flags.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok(Self(file))
    }

    /// A duplicate, for a command.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub fn stdin(&self) -> io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_device_is_the_only_file_that_is_accepted() {
        assert!(NullDevice::open().is_ok());
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("link")).unwrap();
        for other in [path("file"), path("fifo"), path("link"), dir.path().into()] {
            let error = NullDevice::at(&other).err().unwrap();
            assert!(error.to_string().ends_with("the null device"), "{error}");
        }
    }
}
