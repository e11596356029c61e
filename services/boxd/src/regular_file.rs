//! Reads files that a user of the box may have replaced.
//!
//! Never waits on a FIFO and never reads a device: anything but a regular file is an error. Links are
//! followed, as images have them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NONBLOCK};

/// The first `limit` bytes of a file.
///
/// # Errors
/// As `open(2)` and `read(2)`; `InvalidInput` when it is not a regular file.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags(O_NONBLOCK | O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        let rule = format!("{}: must be a regular file", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, rule));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_of_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&path("file"), 100).unwrap(), b"content");
        assert_eq!(read(&path("link"), 4).unwrap(), b"cont");
        for other in [path("fifo"), dir.path().into(), "/dev/zero".into()] {
            let error = read(&other, 100).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
    }
}
