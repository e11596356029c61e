//! Reads the segments from outside the box, usually after boxd has ended.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::Path;

use agentbox_contracts::logs::LogEntry;

use super::{DIRECTORY_BYTES, FILE_NAMES, record};
use crate::regular_file;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Any I/O error except "not found", which means that there is no output.
    #[error("reading the box's output failed")]
    Io(#[from] io::Error),
}

/// Reads the newest entries in `directory`, oldest first, at most `limit_bytes` of lines. While
/// boxd runs, the `partial` entries at the end may still grow: see [`super::Output::append`].
/// Blocks: reads up to [`DIRECTORY_BYTES`]. A segment that is missing or not boxd's counts as
/// empty; a truncated one counts up to its last complete record.
///
/// # Errors
/// [`ReadError::Io`] when `directory` is not a directory or a read fails.
pub fn read_newest(directory: &Path, limit_bytes: usize) -> Result<Vec<LogEntry>, ReadError> {
    match std::fs::symlink_metadata(directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(io::Error::from(io::ErrorKind::NotADirectory).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let mut segments = Vec::new();
    for name in FILE_NAMES {
        let bytes = segment_bytes(&directory.join(name))?;
        let entries = Newest::from_segment(&bytes, limit_bytes);
        segments.push(entries.entries);
    }
    segments.sort_by_key(|entries| entries.front().map_or(0, |entry| entry.sequence));
    let mut newest = Newest::new(limit_bytes);
    for entry in segments.into_iter().flatten() {
        newest.push(entry);
    }
    Ok(newest.entries.into())
}

fn segment_bytes(path: &Path) -> Result<Vec<u8>, ReadError> {
    // A link gives ELOOP, a FIFO or a device InvalidInput; boxd makes none of them.
    let Ok(file) = regular_file::open(path) else {
        return Ok(Vec::new());
    };
    let mut bytes = Vec::new();
    file.take(DIRECTORY_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Keeps the newest pushed entries within a limit. Ignores entries whose sequence does not
/// rise.
struct Newest {
    entries: VecDeque<LogEntry>,
    line_bytes: usize,
    limit_bytes: usize,
}

impl Newest {
    fn new(limit_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            line_bytes: 0,
            limit_bytes,
        }
    }

    fn from_segment(bytes: &[u8], limit_bytes: usize) -> Self {
        let mut newest = Self::new(limit_bytes);
        let mut rest = bytes.strip_prefix(record::MAGIC).unwrap_or_default();
        while let Some((entry, after)) = record::decode(rest) {
            rest = after;
            newest.push(entry);
        }
        newest
    }

    fn push(&mut self, entry: LogEntry) {
        if self
            .entries
            .back()
            .is_some_and(|last| last.sequence >= entry.sequence)
        {
            return;
        }
        self.line_bytes += entry.line.len();
        self.entries.push_back(entry);
        while self.line_bytes > self.limit_bytes {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.line_bytes -= oldest.line.len();
        }
    }
}
