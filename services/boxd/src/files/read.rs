//! Reading a file, a part of it, or a directory as a tar stream.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::{Archive, ByteRange, Opened, Part, Read};
use bytes::Bytes;
use chrono::DateTime;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, fstatfs, openat, statat};

use super::caller::Caller;
use super::failure::{Failure, OnPath as _, Result};
use super::location::file_type;
use super::metadata::{Describer, etag, matches_weakly, size};
use super::pack;

/// File systems whose files have another size than their content: procfs, sysfs and both versions of
/// cgroup.
const SYNTHETIC_FILE_SYSTEMS: [i64; 4] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];

/// Answers `opened`, then the content.
///
/// # Errors
/// As `open(2)`, `read(2)`; `Validation` for a device, a FIFO or a socket; `Conflict` when the file
/// becomes shorter than the length that was announced.
pub fn read(caller: &mut Caller, path: &[u8], request: &Read) -> Result<()> {
    // Opening a device may already have an effect.
    let found = statat(CWD, path, AtFlags::empty()).on(path)?;
    if !matches!(
        file_type(&found),
        FileType::RegularFile | FileType::Directory
    ) {
        return Err(not_regular(path));
    }
    // It may have been replaced: without waiting for the other end of a FIFO, and without taking a
    // terminal.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty()).on(path)?;
    let stat = fstat(&file).on(path)?;
    let metadata = Describer::read().metadata(path, &stat);
    let archive = Archive::try_from(request.archive).unwrap_or(Archive::None);
    match file_type(&stat) {
        FileType::Directory if archive != Archive::None => {
            caller.send(Output::Opened(Opened {
                metadata,
                ..Opened::default()
            }))?;
            if request.head {
                return Ok(());
            }
            pack::pack(caller, file, path, archive)
        }
        FileType::Directory => Err(Failure::at(path, ErrorCode::IsADirectory, "is a directory")),
        FileType::RegularFile => {
            let mut file = File::from(file);
            let is_synthetic = is_synthetic(&file);
            let mut opened = Opened {
                metadata,
                ..plan(&stat, request, is_synthetic)
            };
            if request.head || opened.not_modified || opened.unsatisfiable {
                return caller.send(Output::Opened(opened));
            }
            if let Some(part) = opened.part {
                file.seek(SeekFrom::Start(part.first)).on(path)?;
            }
            let mut chunk = vec![0; MAX_CHUNK];
            let mut count = fill(&mut file, &mut chunk).on(path)?;
            // The content of such a file is known to be complete only when it ends at once.
            if opened.length.is_none() && count == 0 {
                opened.length = Some(0);
            }
            let mut rest = opened.length;
            caller.send(Output::Opened(opened))?;
            while count > 0 && rest != Some(0) {
                let part = match rest {
                    Some(rest) => count.min(usize::try_from(rest).unwrap_or(usize::MAX)),
                    None => count,
                };
                caller.send(Output::Data(Bytes::copy_from_slice(&chunk[..part])))?;
                rest = rest.map(|rest| rest.saturating_sub(part as u64));
                count = fill(&mut file, &mut chunk).on(path)?;
            }
            match rest {
                Some(missing) if missing > 0 => Err(Failure::at(
                    path,
                    ErrorCode::Conflict,
                    "became shorter while it was read",
                )),
                _ => Ok(()),
            }
        }
        _ => Err(not_regular(path)),
    }
}

/// The failure for a device, a FIFO or a socket.
fn not_regular(path: &[u8]) -> Failure {
    Failure::new(
        ErrorCode::Validation,
        format!(
            "path: must name a regular file or a directory, `{}` is a device, a FIFO or a socket",
            super::failure::shown(path)
        ),
    )
}

/// Whether the size of the file does not tell the length of its content.
fn is_synthetic(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| SYNTHETIC_FILE_SYSTEMS.contains(&found.f_type))
}

/// Reads until the buffer is full or the file ends. A file that has no data now ends here.
fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// Evaluates the conditions and the range on the opened file. The metadata is left out.
fn plan(stat: &Stat, request: &Read, is_synthetic: bool) -> Opened {
    let (etag, size) = (etag(stat), size(stat));
    let opened = Opened {
        not_modified: matches_weakly(&request.if_none_match, &etag),
        length: (size > 0 && !is_synthetic).then_some(size),
        ..Opened::default()
    };
    let range = request.range.filter(|_| {
        !opened.not_modified && (size > 0 && !is_synthetic) && range_applies(stat, request, &etag)
    });
    let Some(range) = range else {
        return Opened { etag, ..opened };
    };
    match part(range, size) {
        Some(part) => Opened {
            etag,
            part: Some(part),
            length: Some(part.last - part.first + 1),
            ..opened
        },
        None => Opened {
            etag,
            unsatisfiable: true,
            length: None,
            ..opened
        },
    }
}

/// Whether the condition of `If-Range` holds (RFC 9110, 13.1.5).
fn range_applies(stat: &Stat, request: &Read, etag: &str) -> bool {
    match request.if_range.as_str() {
        "" => true,
        quoted if quoted.ends_with('"') => quoted == etag,
        date => last_modified(stat).is_some_and(|modified| modified == date),
    }
}

/// The time of the last change as an HTTP date, as in `Last-Modified`.
fn last_modified(stat: &Stat) -> Option<String> {
    let modified = DateTime::from_timestamp(stat.st_mtime, 0)?;
    Some(modified.format("%a, %d %b %Y %H:%M:%S GMT").to_string())
}

/// The part of a file of `size` bytes, more than 0. `None`: the range is not satisfiable.
fn part(range: ByteRange, size: u64) -> Option<Part> {
    let end = size - 1;
    let (first, last) = match (range.first, range.last) {
        (Some(first), last) => (first, last.unwrap_or(end).min(end)),
        (None, Some(suffix)) if suffix > 0 => (size.saturating_sub(suffix), end),
        (None, _) => return None,
    };
    (first <= last).then_some(Part { first, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_selects_a_part_or_is_unsatisfiable() {
        for (first, last, expected) in [
            (Some(0), Some(0), Some((0, 0))),
            (Some(2), None, Some((2, 9))),
            (Some(2), Some(99), Some((2, 9))),
            (None, Some(3), Some((7, 9))),
            (None, Some(99), Some((0, 9))),
            (Some(9), None, Some((9, 9))),
            (Some(10), None, None),
            (Some(10), Some(12), None),
            (None, Some(0), None),
            (None, None, None),
        ] {
            let expected = expected.map(|(first, last)| Part { first, last });
            assert_eq!(part(ByteRange { first, last }, 10), expected);
        }
    }

    #[test]
    fn conditions_select_content_part_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "0123456789").unwrap();
        let stat = rustix::fs::stat(&path).unwrap();
        let range = Some(ByteRange {
            first: Some(4),
            last: None,
        });
        let request = |if_range: &str, if_none_match: &str| Read {
            range,
            if_range: if_range.to_owned(),
            if_none_match: vec![if_none_match.to_owned()],
            ..Read::default()
        };
        let tag = etag(&stat);
        let date = last_modified(&stat).unwrap();
        for if_range in ["", &tag, &date] {
            let opened = plan(&stat, &request(if_range, "\"x\""), false);
            assert_eq!((opened.length, opened.part.is_some()), (Some(6), true));
        }
        for if_range in ["\"x\"", "Thu, 01 Jan 1970 00:00:00 GMT"] {
            let opened = plan(&stat, &request(if_range, "\"x\""), false);
            assert_eq!((opened.length, opened.part), (Some(10), None));
        }
        assert!(plan(&stat, &request("", &tag), false).not_modified);
        let synthetic = plan(&stat, &request("", "\"x\""), true);
        assert_eq!((synthetic.length, synthetic.part), (None, None));
    }

    #[test]
    fn last_modified_is_an_http_date() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(784_111_777);
        file.set_modified(time).unwrap();
        let stat = rustix::fs::stat(&path).unwrap();
        let expected = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(last_modified(&stat).as_deref(), Some(expected));
    }
}
