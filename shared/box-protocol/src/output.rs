//! The main command's output on disk: two segments in a small directory (a tmpfs the
//! driver mounts), so that it survives boxd and can be read from outside the box.
//!
//! Format of a segment: [`record::MAGIC`], then records (see [`record`]). boxd fills
//! one segment, then empties the other and goes on there: the newest
//! [`SEGMENT_BYTES`] at least are kept once that much was written.
//!
//! Invariants:
//! * I1. Sequences rise by one with each entry, over both segments; one that is missing
//!   was lost (the disk was full, or its segment was reused).
//! * I2. The reader trusts nothing: the box's user may have replaced, cut or filled the
//!   files. It reads regular files only, a bounded amount of them, and stops in a
//!   segment at the first record whose checksum fails.

mod reader;
pub mod record;
mod writer;

pub use reader::{ReadError, read_newest};
pub use writer::{Batch, NewEntry, Output, WriteError};

/// Bytes of one segment.
pub const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// The size that the directory's file system needs: two segments and some room.
pub const DIRECTORY_BYTES: u64 = 2 * SEGMENT_BYTES + 1024 * 1024;

/// A longer line becomes several entries, all but the last `partial`.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

const FILE_NAMES: [&str; 2] = ["output-0", "output-1"];

#[cfg(test)]
mod tests;
