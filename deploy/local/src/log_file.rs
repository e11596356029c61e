//! One program's log file. Bounded: at its limit it becomes `<name>.log.1`, and the
//! one before that goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// At most twice this is kept of each program.
pub(crate) const LIMIT_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl LogFile {
    /// Appends to what is there.
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
    /// When the disk does not take it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written + bytes.len() as u64 > self.limit {
            std::fs::rename(&self.path, rotated(&self.path))?;
            *self = Self::open(&self.path, self.limit)?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Where the older half of a log is.
pub(crate) fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// The last lines of a log, at most `bytes` of it; empty when there is none.
pub(crate) fn tail(path: &Path, bytes: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut text = Vec::new();
        file.take(bytes).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_never_grows_past_twice_its_limit_and_keeps_the_newest() {
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
