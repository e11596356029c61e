//! Writes the segments: appends, rotates, and reads back for boxd's own readers.
//!
//! Has no lock of its own: boxd holds a lock around it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use agentbox_contracts::logs::{LineStarts, LogEntry, OutputStream};
use nix::libc::{O_CLOEXEC, O_NOFOLLOW};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{FILE_NAMES, record};

/// The distance of index entries, in bytes. A read skips at most this number of bytes.
const INDEX_EVERY_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("opening the output files failed")]
    Open(#[source] io::Error),
    /// The entries are lost; their sequences are not used again.
    #[error("writing output failed")]
    Append(#[source] io::Error),
    #[error("reading output back failed")]
    Read(#[source] io::Error),
}

/// A line to append, without its line feed.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    pub stream: OutputStream,
    pub partial: bool,
    pub line: &'a [u8],
}

/// The result of [`Output::read`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub entries: Vec<LogEntry>,
    /// The sequence at which to continue.
    pub next_sequence: u64,
    /// The number of lost entries before and between `entries`.
    pub lost: u64,
}

/// The position at which the newest lines begin, from [`Output::tail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The sequence of the first entry.
    pub sequence: u64,
    /// The number of lines that belong to the newest ones and are no longer kept.
    pub lost: u64,
}

/// The position of a record, and the state of counting before it.
#[derive(Clone, Copy)]
struct Indexed {
    sequence: u64,
    offset: u64,
    lines: u64,
    starts: LineStarts,
}

struct Segment {
    file: File,
    /// The size of the records, without unfinished lines.
    length: u64,
    /// The size of the file.
    written: u64,
    /// Some records, the first one included.
    index: Vec<Indexed>,
}

/// The two segments.
pub struct Output {
    segments: [Segment; 2],
    current: usize,
    segment_bytes: u64,
    next_sequence: u64,
    /// The number of lines that the entries so far have begun.
    lines: u64,
    starts: LineStarts,
    /// The next record is indexed, because records before it are missing.
    index_next: bool,
    scratch: Vec<u8>,
}

impl Output {
    /// Starts with new files in `directory`; removes existing files of the same names.
    ///
    /// # Errors
    /// [`WriteError::Open`].
    pub fn in_directory(directory: &Path, segment_bytes: u64) -> Result<Self, WriteError> {
        let open = |name: &str| {
            let path = directory.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .custom_flags(O_NOFOLLOW | O_CLOEXEC)
                .mode(0o600)
                .open(path)
        };
        Self::start(FILE_NAMES.map(open), segment_bytes)
    }

    /// Keeps the output in memory, until this process ends.
    ///
    /// # Errors
    /// [`WriteError::Open`].
    pub fn in_memory(segment_bytes: u64) -> Result<Self, WriteError> {
        let open = |name: &str| {
            memfd_create(name, MFdFlags::MFD_CLOEXEC)
                .map(File::from)
                .map_err(io::Error::from)
        };
        Self::start(FILE_NAMES.map(open), segment_bytes)
    }

    fn start(files: [io::Result<File>; 2], segment_bytes: u64) -> Result<Self, WriteError> {
        let [first, second] = files;
        let segment = |file: io::Result<File>| {
            file.map(|file| Segment {
                file,
                length: 0,
                written: 0,
                index: Vec::new(),
            })
            .map_err(WriteError::Open)
        };
        Ok(Self {
            segments: [segment(first)?, segment(second)?],
            current: 0,
            segment_bytes: segment_bytes.max(4 * record::MAX_RECORD_BYTES as u64),
            next_sequence: 1,
            lines: 0,
            starts: LineStarts::default(),
            index_next: false,
            scratch: Vec::new(),
        })
    }

    /// The sequence that the next entry will have.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// The sequence of the oldest kept entry; [`Self::next_sequence`] when there is none.
    #[must_use]
    pub fn first_sequence(&self) -> u64 {
        self.ordered()
            .into_iter()
            .find_map(|segment| segment.index.first())
            .map_or(self.next_sequence, |first| first.sequence)
    }

    /// The segments, the older one first.
    fn ordered(&self) -> [&Segment; 2] {
        [
            &self.segments[1 - self.current],
            &self.segments[self.current],
        ]
    }

    /// Appends entries that were read at the same instant, and stores the unfinished lines, at
    /// most one of each stream, after them. Those are not entries yet: [`Self::read`] does not
    /// return them, and the next call replaces them. [`super::read_newest`] returns them as the
    /// last entries, so that a killed box loses none.
    ///
    /// # Errors
    /// [`WriteError::Append`]; then the segment is unchanged and the entries are lost.
    pub fn append(
        &mut self,
        unix_nanos: i64,
        entries: &[NewEntry<'_>],
        unfinished: &[NewEntry<'_>],
    ) -> Result<(), WriteError> {
        let reserved: u64 = unfinished
            .iter()
            .map(|line| record::encoded_len(line.line.len()) as u64)
            .sum();
        let mut result = Ok(());
        let mut rest = entries;
        while !rest.is_empty() {
            let taken = self.append_some(unix_nanos, rest, reserved, &mut result);
            rest = rest.get(taken..).unwrap_or_default();
        }
        self.store_unfinished(unix_nanos, unfinished, reserved);
        result
    }

    /// Writes the unfinished lines after the last record. A failure loses nothing: boxd has them.
    fn store_unfinished(&mut self, unix_nanos: i64, unfinished: &[NewEntry<'_>], reserved: u64) {
        let is_full = self.segments[self.current].length + reserved > self.segment_bytes;
        if is_full && self.rotate().is_err() {
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let segment = &mut self.segments[self.current];
        if segment.length == 0 && !unfinished.is_empty() {
            scratch.extend_from_slice(record::MAGIC);
        }
        for (sequence, line) in (self.next_sequence..).zip(unfinished) {
            record::encode(
                &mut scratch,
                sequence,
                unix_nanos,
                line.stream,
                true,
                line.line,
            );
        }
        // On an error the file is truncated to its records.
        let _ = segment.replace_tail(&scratch);
        self.scratch = scratch;
    }

    /// Appends as many entries as fit the current segment and leave `reserved` bytes, at least one;
    /// returns how many were appended or lost.
    fn append_some(
        &mut self,
        unix_nanos: i64,
        entries: &[NewEntry<'_>],
        reserved: u64,
        result: &mut Result<(), WriteError>,
    ) -> usize {
        let first_len = entries
            .first()
            .map_or(0, |entry| record::encoded_len(entry.line.len()));
        let length = self.segments[self.current].length;
        if length + first_len as u64 + reserved > self.segment_bytes
            && let Err(error) = self.rotate()
        {
            // A segment never grows over its limit, so there is no room for these entries.
            *result = Err(WriteError::Append(error));
            self.next_sequence += entries.len() as u64;
            return entries.len();
        }
        let segment = &mut self.segments[self.current];
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        if segment.length == 0 {
            scratch.extend_from_slice(record::MAGIC);
        }
        let indexed = segment.index.len();
        let mut taken = 0;
        for entry in entries {
            let offset = segment.length + scratch.len() as u64;
            let end = offset + record::encoded_len(entry.line.len()) as u64;
            if taken > 0 && end + reserved > self.segment_bytes {
                break;
            }
            let due = segment
                .index
                .last()
                .is_none_or(|last| offset - last.offset >= INDEX_EVERY_BYTES);
            if due || self.index_next {
                segment.index.push(Indexed {
                    sequence: self.next_sequence,
                    offset,
                    lines: self.lines,
                    starts: self.starts,
                });
                self.index_next = false;
            }
            let NewEntry {
                stream,
                partial,
                line,
            } = *entry;
            record::encode(
                &mut scratch,
                self.next_sequence,
                unix_nanos,
                stream,
                partial,
                line,
            );
            self.next_sequence += 1;
            self.lines += u64::from(self.starts.begins_line(stream, partial));
            taken += 1;
        }
        match segment.replace_tail(&scratch) {
            Ok(()) => segment.length = segment.written,
            Err(error) => {
                segment.index.truncate(indexed);
                self.index_next = true;
                *result = Err(WriteError::Append(error));
            }
        }
        self.scratch = scratch;
        taken
    }

    /// Empties the other segment and makes it the current one. Changes nothing when it fails.
    fn rotate(&mut self) -> io::Result<()> {
        // The unfinished lines move to the other segment.
        self.segments[self.current].replace_tail(&[])?;
        let other = &mut self.segments[1 - self.current];
        other.file.set_len(0)?;
        other.length = 0;
        other.written = 0;
        other.index.clear();
        self.current = 1 - self.current;
        Ok(())
    }

    /// Finds where the newest `count` lines begin. A line is all its pieces: the position is the
    /// first piece of a line, and pieces of an older line of the other stream may follow it.
    ///
    /// # Errors
    /// [`WriteError::Read`].
    pub fn tail(&self, count: u64) -> Result<Tail, WriteError> {
        // The number of lines before the newest ones.
        let older = self.lines.saturating_sub(count);
        let indexed: Vec<(&Segment, Indexed)> = self
            .ordered()
            .into_iter()
            .flat_map(|segment| segment.index.iter().map(move |at| (segment, *at)))
            .collect();
        let after = indexed.partition_point(|(_, at)| at.lines <= older);
        if let Some((segment, at)) = after.checked_sub(1).and_then(|last| indexed.get(last))
            && let Some(sequence) = segment
                .find_line(*at, older, self.next_sequence)
                .map_err(WriteError::Read)?
        {
            return Ok(Tail { sequence, lost: 0 });
        }
        Ok(match indexed.get(after) {
            Some((_, at)) => Tail {
                sequence: at.sequence,
                lost: at.lines - older,
            },
            None => Tail {
                sequence: self.next_sequence,
                lost: self.lines - older,
            },
        })
    }

    /// Reads entries from sequence `from` on, about `max_bytes`; none when `from` is the next
    /// sequence.
    ///
    /// # Errors
    /// [`WriteError::Read`].
    pub fn read(&self, from: u64, max_bytes: usize) -> Result<Batch, WriteError> {
        let mut batch = Batch {
            next_sequence: from.max(1),
            ..Batch::default()
        };
        let mut budget = max_bytes.max(record::MAX_RECORD_BYTES);
        for segment in self.ordered() {
            let Some(start) = segment.offset_before(batch.next_sequence) else {
                continue;
            };
            let mut offset = start;
            while offset < segment.length && budget > 0 {
                let bytes = segment.bytes_at(offset).map_err(WriteError::Read)?;
                let mut rest = &bytes[..];
                // A number that was not given yet is not boxd's either: a process in the box has
                // written the record.
                while budget > 0
                    && let Some((entry, after)) = record::decode(rest)
                    && entry.sequence < self.next_sequence
                {
                    offset += (rest.len() - after.len()) as u64;
                    rest = after;
                    if entry.sequence >= batch.next_sequence {
                        batch.lost += entry.sequence - batch.next_sequence;
                        batch.next_sequence = entry.sequence + 1;
                        budget = budget.saturating_sub(record::encoded_len(entry.line.len()));
                        batch.entries.push(entry);
                    }
                }
                if rest.len() == bytes.len() {
                    // A process in the box has overwritten the file: the rest is lost.
                    break;
                }
            }
        }
        if batch.entries.is_empty() && batch.next_sequence < self.next_sequence {
            batch.lost += self.next_sequence - batch.next_sequence;
            batch.next_sequence = self.next_sequence;
        }
        Ok(batch)
    }
}

impl Segment {
    /// The offset at which to start scanning for `sequence`; `None` when the segment is
    /// empty.
    fn offset_before(&self, sequence: u64) -> Option<u64> {
        let after = self
            .index
            .partition_point(|indexed| indexed.sequence <= sequence);
        self.index
            .get(after.saturating_sub(1))
            .map(|indexed| indexed.offset)
    }

    /// The sequence of the entry that begins the line after `older` lines, if it follows `from`
    /// within the distance of index entries. A number from `next` on is not boxd's.
    fn find_line(&self, from: Indexed, older: u64, next: u64) -> io::Result<Option<u64>> {
        let (mut lines, mut starts) = (from.lines, from.starts);
        let bytes = self.bytes_at(from.offset)?;
        let mut rest = &bytes[..];
        while let Some((entry, after)) = record::decode(rest)
            && entry.sequence < next
        {
            rest = after;
            if starts.begins_line(entry.stream, entry.partial) {
                if lines == older {
                    return Ok(Some(entry.sequence));
                }
                lines += 1;
            }
        }
        Ok(None)
    }

    /// Replaces everything after the records with `bytes`; on an error, with nothing.
    fn replace_tail(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.length + bytes.len() as u64;
        let written = self.file.write_all_at(bytes, self.length).and_then(|()| {
            if end < self.written {
                self.file.set_len(end)?;
            }
            Ok(())
        });
        match written {
            Ok(()) => self.written = end,
            Err(_) => {
                // A partial write must not look like records.
                let _ = self.file.set_len(self.length);
                self.written = self.length;
            }
        }
        written
    }

    fn bytes_at(&self, offset: u64) -> io::Result<Vec<u8>> {
        let wanted =
            (self.length - offset).min(INDEX_EVERY_BYTES + record::MAX_RECORD_BYTES as u64);
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            match self
                .file
                .read_at(&mut bytes[filled..], offset + filled as u64)?
            {
                0 => break,
                read => filled += read,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 4 * record::MAX_RECORD_BYTES as u64;

    fn segment(directory: &Path, name: &str) -> File {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(name))
            .unwrap()
    }

    fn append(output: &mut Output, count: usize) -> Result<(), WriteError> {
        let entry = NewEntry {
            stream: OutputStream::Stdout,
            partial: false,
            line: &[b'x'; 1000],
        };
        output.append(0, &vec![entry; count], &[])
    }

    #[test]
    fn entries_are_lost_and_counted_while_the_other_segment_cannot_be_emptied() {
        let dir = tempfile::tempdir().unwrap();
        segment(dir.path(), "second");
        let read_only = File::open(dir.path().join("second")).unwrap();
        let files = [Ok(segment(dir.path(), "first")), Ok(read_only)];
        let mut output = Output::start(files, SEGMENT).unwrap();
        let mut appended = 0;
        while append(&mut output, 1).is_ok() {
            appended += 1;
            assert!(appended * 1000 < SEGMENT, "the segment is over its limit");
        }
        append(&mut output, 9).unwrap_err();
        assert!(output.segments[0].length <= SEGMENT);
        assert_eq!(output.next_sequence(), appended + 11);

        output.segments[1].file = segment(dir.path(), "second");
        append(&mut output, 1).unwrap();
        let batch = output.read(appended + 1, 1).unwrap();
        assert_eq!(batch.lost, 10);
        assert_eq!(batch.entries[0].sequence, appended + 11);
    }
}
