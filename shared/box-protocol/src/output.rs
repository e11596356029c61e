//! The main command's output on disk: two segments in a small directory (a tmpfs that the
//! driver mounts), which outlive boxd and can be read from outside the box.
//!
//! Format of a segment: [`record::MAGIC`], then records (see [`record`]). boxd fills
//! one segment, then truncates the other and continues there: at least the newest
//! [`SEGMENT_BYTES`] are kept. The unfinished line of each stream, if there is one, is a
//! `partial` record after the newest entry, which the next write replaces.
//!
//! Format of boxd's standard output, from which Kubernetes makes the container's log: one
//! [`text`] line for each entry, and [`execution_text`] lines.
//!
//! Invariants:
//! * I1. Sequences start at 1 and rise by one with each entry, over both segments. A missing
//!   sequence is a lost entry: it could not be written, or its segment was reused.
//! * I2. The reader does not trust the files: the box's user may have replaced, truncated or
//!   filled them. It reads regular files only, a bounded number of bytes, and stops in a
//!   segment at the first record whose checksum is wrong.

pub mod execution_text;
mod reader;
pub mod record;
pub mod text;
mod writer;

pub use reader::{ReadError, read_newest};
pub use writer::{Batch, NewEntry, Output, Tail, WriteError};

/// The size of one segment, in bytes.
pub const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// The size of the directory's file system, in bytes: two segments and a reserve.
pub const DIRECTORY_BYTES: u64 = 2 * SEGMENT_BYTES + 1024 * 1024;

/// The length limit of an entry's line, in bytes. A longer line becomes several entries, all
/// but the last `partial`, cut between characters.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

const FILE_NAMES: [&str; 2] = ["output-0", "output-1"];

#[cfg(test)]
mod tests;
