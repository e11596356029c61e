//! One program's log file, with rotation: at its limit it is renamed to `<name>.log.1`, which
//! replaces the one before.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The size at which a log is rotated. At most twice this size is kept for each program.
pub(crate) const LIMIT_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl LogFile {
    /// Opens a log for appending.
    ///
    /// # Errors
    /// When the file cannot be opened for writing.
    pub(crate) fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            written,
            limit,
        })
    }

    /// # Errors
    /// When the bytes cannot be written.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.limit {
            match std::fs::rename(&self.path, rotated(&self.path)) {
                // An earlier rotation renamed the file and could not open the new one.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            *self = Self::open(&self.path, self.limit)?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// The path of a rotated log.
pub(crate) fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use agentbox_testing::log_tail::tail;

    use super::*;

    #[test]
    fn log_without_a_file_at_its_limit_starts_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth-0.log");
        let mut log = LogFile::open(&path, 10).unwrap();
        log.write(b"a full line\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        log.write(b"the next line\n").unwrap();
        assert_eq!(tail(&path, 100), "the next line\n");
    }

    #[test]
    fn log_at_its_limit_is_rotated_and_keeps_the_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth-0.log");
        let mut log = LogFile::open(&path, 100).unwrap();
        for number in 0..50 {
            log.write(format!("line {number:03}\n").as_bytes()).unwrap();
        }
        let newest = tail(&path, 1000);
        let older = tail(&rotated(&path), 1000);
        assert!(newest.ends_with("line 049\n"), "{newest}");
        assert!(newest.len() <= 100 && older.len() <= 100);
        assert!(older.ends_with(&format!("line {:03}\n", 50 - newest.lines().count() - 1)));
    }
}
