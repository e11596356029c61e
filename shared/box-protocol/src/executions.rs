//! The journal of executions: a file in the box's output directory that outlives boxd, so that the
//! executions of a box that was killed can be reported.
//!
//! Format: [`MAGIC`], then records, little-endian: `length u32` and `crc32 u32` (both of the bytes
//! after the checksum), `kind u8`, body. Kind 1: an [`Execution`] as protobuf; it replaces an
//! earlier one with its id. Kind 2: the id of an execution that was forgotten.
//!
//! * I1. The file has at most [`MAX_BYTES`]. When it is full, the newest records that fit
//!   [`COMPACTED_BYTES`] are written to a new file, which replaces it; those of executions
//!   without an end are kept first.
//! * I2. The reader does not trust the file: the box's user may have replaced, truncated or filled
//!   it. It reads a regular file only, at most [`MAX_BYTES`], stops at the first record whose
//!   checksum is wrong, such as one that was being written, and drops records that boxd does
//!   not write.

mod journal;
mod kept_output;
mod record;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use agentbox_contracts::executions::Execution;

pub use journal::Journal;
pub use kept_output::{OutputReader, OutputWriter, read_output};
pub use record::is_id;
pub(crate) use record::{cut, cut_command};

use crate::regular_file;

/// The first bytes of the file; the digit is the format version.
const MAGIC: &[u8; 8] = b"abxexe1\n";
/// The size limit of the file, in bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// The size limit of the records after a compaction, in bytes.
const COMPACTED_BYTES: usize = 192 * 1024;
/// The most executions that are returned.
const MAX_EXECUTIONS: usize = 1000;

const FILE_NAME: &str = "executions";
const NEW_FILE_NAME: &str = "executions.new";

/// Reads the executions of `directory`, in the order of their starts; the newest 1,000. One that has
/// not ended there (`status` is active) was lost with its box. Empty when there is no journal,
/// or none of boxd's. The command, like other long texts, is cut. Blocks: reads up to 256 KiB.
#[must_use]
pub fn read(directory: &Path) -> Vec<Execution> {
    let file = open(directory, FILE_NAME);
    file.map_or_else(Vec::new, |file| newest(read_file(file)))
}

/// Opens a file in `directory`; `None` when it is not one of boxd's.
fn open(directory: &Path, name: &str) -> Option<File> {
    let found = std::fs::symlink_metadata(directory).ok()?;
    // A link gives ELOOP, a FIFO or a device InvalidInput; boxd makes none of them.
    let file = found
        .is_dir()
        .then(|| regular_file::open(&directory.join(name)));
    file?.ok()
}

fn read_file(file: File) -> Vec<Execution> {
    let mut bytes = Vec::new();
    // What was read before an error counts.
    let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
    record::replay(bytes.strip_prefix(MAGIC).unwrap_or_default())
}

/// At most [`MAX_EXECUTIONS`]: the oldest ended ones are removed first.
fn newest(mut executions: Vec<Execution>) -> Vec<Execution> {
    let mut surplus = executions.len().saturating_sub(MAX_EXECUTIONS);
    executions.retain(|execution| {
        let is_removed = surplus > 0 && !record::is_active(execution);
        surplus -= usize::from(is_removed);
        !is_removed
    });
    executions.drain(..surplus);
    executions
}

#[cfg(test)]
mod tests;
