//! Listing a directory, one page at a time.
//!
//! The order is fixed by the names alone: each directory's entries in the order of their bytes, and
//! the entries of a subdirectory after the subdirectory itself. The cursor is the path of the last
//! entry of a page, so a page begins at the right place also when that entry is gone.
//!
//! * I1. A page keeps at most as many names as it has entries, for each level.

use std::collections::BinaryHeap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::{Entries, FileMetadata, FileType, List};
use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::caller::Caller;
use super::failure::{Failure, OnPath as _, Result};
use super::location::{MAX_PATH_BYTES, file_type};
use super::metadata::Describer;
use super::stop;

/// The most entries of one page.
const MAX_LIMIT: usize = 10_000;
/// The most levels of one listing.
const MAX_DEPTH: usize = 128;
/// The longest cursor: an entry of a directory with the longest path may be the last one of a page.
const MAX_CURSOR_BYTES: usize = MAX_PATH_BYTES + 256;
/// Entries are sent once they have this size: together with one more they fit into a frame.
const MESSAGE_BYTES: usize = 32 * 1024;
/// A bound for what one entry has besides its path and its link's target.
const ENTRY_BYTES: usize = 600;

/// How a directory is opened.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Answers the metadata of the path and one page of its entries; another file than a directory has
/// none.
///
/// # Errors
/// As `openat(2)`; `Validation` for a malformed cursor.
pub fn list(caller: &mut Caller, path: &[u8], request: &List) -> Result<()> {
    let cursor = Cursor::parse(&request.cursor)?;
    let describer = Describer::read();
    let metadata = describer.describe(path, request.follow)?;
    let is_directory = metadata.file_type == i32::from(FileType::Directory);
    caller.send(Output::Metadata(metadata))?;
    if !is_directory {
        return caller.send(Output::Entries(Entries::default()));
    }
    let mut flags = DIRECTORY;
    if !request.follow {
        flags |= OFlags::NOFOLLOW;
    }
    let directory = openat(CWD, path, flags, Mode::empty()).on(path)?;
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let depth = usize::try_from(request.depth).unwrap_or(usize::MAX);
    let mut page = Page {
        caller,
        describer,
        remaining: limit.clamp(1, MAX_LIMIT),
        entries: Vec::new(),
        bytes: 0,
        last: Vec::new(),
    };
    let mut names = Names {
        prefix: path.to_vec(),
        relative: Vec::new(),
    };
    let after = cursor.into_names();
    let depth = depth.clamp(1, MAX_DEPTH);
    let progress = page.add_directory(&directory, &mut names, &after, depth)?;
    let next_cursor = match progress {
        Progress::Complete => Bytes::new(),
        Progress::Full => Bytes::from(std::mem::take(&mut page.last)),
    };
    page.send(next_cursor)
}

/// The path of the last entry of a page, relative to the listed directory, by its names.
#[derive(Debug, PartialEq, Eq)]
pub struct Cursor(Vec<Vec<u8>>);

impl Cursor {
    /// # Errors
    /// `Validation`.
    pub fn parse(text: &[u8]) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let names: Vec<Vec<u8>> = text
            .split(|byte| *byte == b'/')
            .map(<[u8]>::to_vec)
            .collect();
        let is_name = |name: &Vec<u8>| {
            !name.is_empty() && !name.contains(&0) && !matches!(name.as_slice(), b"." | b"..")
        };
        if text.len() > MAX_CURSOR_BYTES || names.len() > MAX_DEPTH || !names.iter().all(is_name) {
            let rule = "cursor: must be the `next_cursor` of the page before";
            return Err(Failure::new(ErrorCode::Validation, rule));
        }
        Ok(Self(names))
    }

    #[must_use]
    pub fn into_names(self) -> Vec<Vec<u8>> {
        self.0
    }
}

#[derive(PartialEq, Eq)]
enum Progress {
    Complete,
    /// The page is full, and there are more entries.
    Full,
}

/// The names from the listed directory to the present one.
struct Names {
    prefix: Vec<u8>,
    relative: Vec<u8>,
}

impl Names {
    fn push(&mut self, name: &[u8]) -> usize {
        let before = self.relative.len();
        if before > 0 {
            self.relative.push(b'/');
        }
        self.relative.extend_from_slice(name);
        before
    }

    fn path(&self) -> Vec<u8> {
        let mut path = self.prefix.clone();
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(&self.relative);
        path
    }
}

struct Page<'caller> {
    caller: &'caller mut Caller,
    describer: Describer,
    remaining: usize,
    entries: Vec<FileMetadata>,
    bytes: usize,
    /// The path of the last added entry.
    last: Vec<u8>,
}

impl Page<'_> {
    /// Adds the entries of a directory after `after`, `depth` levels deep.
    fn add_directory(
        &mut self,
        directory: &OwnedFd,
        names: &mut Names,
        after: &[Vec<u8>],
        depth: usize,
    ) -> Result<Progress> {
        let first = after.first();
        // One more than fits shows that there is a further page.
        let sorted =
            smallest_names(directory.as_fd(), first, self.remaining + 1).on(&names.path())?;
        for name in sorted {
            stop::check()?;
            let stat = match statat(directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(Failure::of(&names.path(), errno)),
            };
            let is_cursor = first == Some(&name);
            let before = names.push(&name);
            let mut progress = Progress::Complete;
            if !is_cursor {
                progress = self.add(names, directory.as_fd(), &name, &stat)?;
            }
            // A longer path cannot be asked for.
            let is_reachable = names.path().len() <= MAX_PATH_BYTES;
            let descends = depth > 1 && is_reachable && file_type(&stat).is_dir();
            if progress == Progress::Complete && descends {
                let flags = DIRECTORY | OFlags::NOFOLLOW;
                let rest: &[Vec<u8>] = if is_cursor { &after[1..] } else { &[] };
                match openat(directory, name.as_slice(), flags, Mode::empty()) {
                    Ok(below) => progress = self.add_directory(&below, names, rest, depth - 1)?,
                    // It was replaced, or this user may not read it: only its entries are missing.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => {}
                    Err(errno) => return Err(Failure::of(&names.path(), errno)),
                }
            }
            names.relative.truncate(before);
            if progress == Progress::Full {
                return Ok(Progress::Full);
            }
        }
        Ok(Progress::Complete)
    }

    fn add(
        &mut self,
        names: &Names,
        directory: BorrowedFd<'_>,
        name: &[u8],
        stat: &rustix::fs::Stat,
    ) -> Result<Progress> {
        if self.remaining == 0 {
            return Ok(Progress::Full);
        }
        self.remaining -= 1;
        let metadata = self
            .describer
            .with_target(&names.path(), stat, directory, name);
        self.last.clone_from(&names.relative);
        let target = metadata.target.as_ref().map_or(0, Bytes::len);
        self.bytes += metadata.path.len() + target + ENTRY_BYTES;
        self.entries.push(metadata);
        if self.bytes >= MESSAGE_BYTES {
            self.send(Bytes::new())?;
        }
        Ok(Progress::Complete)
    }

    fn send(&mut self, next_cursor: Bytes) -> Result<()> {
        self.bytes = 0;
        let entries = std::mem::take(&mut self.entries);
        self.caller.send(Output::Entries(Entries {
            entries,
            next_cursor,
        }))
    }
}

/// The first names from `from` on, in order, at most `limit` of them.
fn smallest_names(
    directory: BorrowedFd<'_>,
    from: Option<&Vec<u8>>,
    limit: usize,
) -> rustix::io::Result<Vec<Vec<u8>>> {
    // `from` itself is not counted: its entries come first.
    let limit = limit + usize::from(from.is_some());
    let mut kept = BinaryHeap::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let is_before = from.is_some_and(|from| name < from.as_slice());
        if is_before || matches!(name, b"." | b"..") {
            continue;
        }
        if kept.len() < limit {
            kept.push(name.to_vec());
        } else if let Some(mut largest) = kept.peek_mut()
            && name < largest.as_slice()
        {
            *largest = name.to_vec();
        }
    }
    Ok(kept.into_sorted_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_is_a_relative_path_without_special_names() {
        let names = |names: &[&[u8]]| Ok(Cursor(names.iter().map(|name| name.to_vec()).collect()));
        assert_eq!(Cursor::parse(b""), names(&[]));
        assert_eq!(Cursor::parse(b"a/\xff\n"), names(&[b"a", b"\xff\n"]));
        let long = vec![b'a'; MAX_CURSOR_BYTES + 1];
        let deep = [b"a".as_slice(); MAX_DEPTH + 1].join(&b'/');
        for text in [
            &b"/a"[..],
            b"a/",
            b"a//b",
            b"..",
            b"a/../b",
            b".",
            b"a\0",
            &long,
            &deep,
        ] {
            let error = Cursor::parse(text).unwrap_err();
            assert_eq!(error.code, ErrorCode::Validation);
        }
    }

    #[test]
    fn smallest_names_are_sorted_from_the_cursor_on_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["d", "a", "c", "b", "e"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let opened = std::fs::File::open(dir.path()).unwrap();
        let names = |from: Option<&str>, limit| {
            let from = from.map(|name| name.as_bytes().to_vec());
            let found = smallest_names(opened.as_fd(), from.as_ref(), limit).unwrap();
            found.concat()
        };
        assert_eq!(names(None, 9), b"abcde");
        assert_eq!(names(None, 2), b"ab");
        assert_eq!(names(Some("b"), 2), b"bcd");
        assert_eq!(names(Some("bb"), 9), b"cde");
    }
}
