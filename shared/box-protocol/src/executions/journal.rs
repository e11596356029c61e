//! Writes the journal. Has no lock of its own: boxd holds a lock around it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use agentbox_contracts::executions::Execution;
use nix::libc::{O_CLOEXEC, O_NOFOLLOW};

use super::{COMPACTED_BYTES, FILE_NAME, MAGIC, MAX_BYTES, NEW_FILE_NAME, read_file, record};
use crate::regular_file;

pub struct Journal {
    directory: PathBuf,
    file: File,
    /// The size of the complete records, and of what is before them.
    length: u64,
}

impl Journal {
    /// Starts with a new file in `directory`; removes an existing one.
    ///
    /// # Errors
    /// As `open(2)` and `write(2)`.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let file = new_file(&directory.join(FILE_NAME))?;
        file.write_all_at(MAGIC, 0)?;
        Ok(Self {
            directory: directory.to_owned(),
            file,
            length: MAGIC.len() as u64,
        })
    }

    /// Writes the present record of an execution.
    ///
    /// # Errors
    /// As `write(2)`, `StorageFull` when records of running executions fill the file. Then
    /// the reader finds the record before.
    pub fn record(&mut self, execution: &Execution) -> io::Result<()> {
        self.append(&record::execution(execution))
    }

    /// Writes that an execution was forgotten.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn forget(&mut self, id: &str) -> io::Result<()> {
        self.append(&record::forgotten(id))
    }

    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let length = record.len() as u64;
        if self.length + length > MAX_BYTES {
            self.compact()?;
        }
        if self.length + length > MAX_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // The next record overwrites one that could not be written completely.
        self.file.write_all_at(record, self.length)?;
        self.length += length;
        Ok(())
    }

    /// Replaces the file by one with the newest records.
    fn compact(&mut self) -> io::Result<()> {
        let current = regular_file::open(&self.directory.join(FILE_NAME))?;
        let mut executions: Vec<(usize, Execution)> =
            read_file(current).into_iter().enumerate().collect();
        // The newest first, before them those that have not ended.
        executions.reverse();
        executions.sort_by_key(|(_, execution)| !record::is_active(execution));
        let mut bytes = COMPACTED_BYTES;
        let mut records = Vec::new();
        for (place, execution) in &executions {
            let record = record::execution(execution);
            let Some(left) = bytes.checked_sub(record.len()) else {
                break;
            };
            bytes = left;
            records.push((*place, record));
        }
        records.sort_by_key(|(place, _)| *place);
        let mut content = MAGIC.to_vec();
        content.extend(records.into_iter().flat_map(|(_, record)| record));

        let path = self.directory.join(NEW_FILE_NAME);
        let file = new_file(&path)?;
        let replaced = file
            .write_all_at(&content, 0)
            .and_then(|()| std::fs::rename(&path, self.directory.join(FILE_NAME)));
        if let Err(error) = replaced {
            // Its space is needed; the old file is still complete.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        self.file = file;
        self.length = content.len() as u64;
        Ok(())
    }
}

/// A new file; an existing one of the same name is removed.
pub(super) fn new_file(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options()
        .write(true)
        .create_new(true)
        .custom_flags(O_NOFOLLOW | O_CLOEXEC)
        .mode(0o600)
        .open(path)
}
