//! The record of an operation's file that is not complete: what is to be removed if its process is killed.
//!
//! It is an anonymous file in memory, the stderr of the process. The process notes the file there before it
//! creates it, and clears the record when the file is complete or removed. If the process ends without a
//! last output, boxd gives the record to a new process of the same user ([`super::removal`]).
//!
//! * I1. Format: the length of what follows, four bytes; device and inode, eight bytes each, or zeros;
//!   the path. Numbers are big-endian. A length of zero: there is no file.
//! * I2. The length is written last, so that a note which was interrupted is none.
//! * I3. The user's other processes may change the record. Its reader has no more rights than they have.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::fs::{CWD, Stat, readlinkat};
use rustix::io::{Errno, pwrite};

/// The longest path of a directory that the kernel tells, and the longest name.
const MAX_PATH_BYTES: usize = 4096 + 256;
const LENGTH_BYTES: usize = 4;
const IDENTITY_BYTES: usize = 16;
const MAX_BYTES: usize = LENGTH_BYTES + IDENTITY_BYTES + MAX_PATH_BYTES;

/// The device and the inode of a file.
pub type Identity = (u64, u64);

#[must_use]
pub fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// boxd's end of the record.
pub struct Record(File);

impl Record {
    /// An empty record.
    ///
    /// # Errors
    /// As `memfd_create(2)`.
    pub fn create() -> io::Result<Self> {
        let mut file = File::from(memfd_create(c"boxd-files", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(MAX_BYTES as u64)?;
        // The message of a panic goes behind the record.
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// A descriptor of it, for a process.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }

    /// Whether a file is noted.
    #[must_use]
    pub fn is_set(&self) -> bool {
        let mut length = [0; LENGTH_BYTES];
        self.0.read_exact_at(&mut length, 0).is_ok() && length != [0; LENGTH_BYTES]
    }
}

/// A noted file.
#[derive(Debug, PartialEq, Eq)]
pub struct Noted {
    /// Absolute, without a symbolic link.
    pub path: Vec<u8>,
    /// `None`: a temporary file, a link or a tree, whose name nothing else has.
    pub identity: Option<Identity>,
}

/// Notes the file `name`, which is to be created in `directory`, or the one of this identity.
///
/// # Errors
/// As `readlink(2)`, `NAMETOOLONG` for a directory whose path the kernel cannot tell; `pwrite(2)`.
pub fn note(
    directory: impl AsFd,
    name: &[u8],
    identity: Option<Identity>,
) -> rustix::io::Result<()> {
    note_in(io::stderr(), directory, name, identity)
}

/// Clears the record.
///
/// # Errors
/// As `pwrite(2)`.
pub fn clear() -> rustix::io::Result<()> {
    write_all_at(io::stderr(), &[0; LENGTH_BYTES], 0)
}

fn note_in(
    record: impl AsFd,
    directory: impl AsFd,
    name: &[u8],
    identity: Option<Identity>,
) -> rustix::io::Result<()> {
    let descriptor = format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd());
    let mut path = readlinkat(CWD, descriptor, Vec::<u8>::new())?.into_bytes();
    if path.first() != Some(&b'/') {
        // It is not below this process's root.
        return Err(Errno::NOENT);
    }
    path.push(b'/');
    path.extend_from_slice(name);
    if path.len() > MAX_PATH_BYTES {
        return Err(Errno::NAMETOOLONG);
    }
    let (device, inode) = identity.unwrap_or_default();
    let mut content = Vec::with_capacity(MAX_BYTES);
    content.extend_from_slice(&device.to_be_bytes());
    content.extend_from_slice(&inode.to_be_bytes());
    content.extend_from_slice(&path);
    let length = u32::try_from(content.len()).map_err(|_| Errno::NAMETOOLONG)?;
    write_all_at(&record, &[0; LENGTH_BYTES], 0)?;
    write_all_at(&record, &content, LENGTH_BYTES as u64)?;
    write_all_at(&record, &length.to_be_bytes(), 0)
}

fn write_all_at(record: impl AsFd, mut bytes: &[u8], mut offset: u64) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match pwrite(&record, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or_default();
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads what is noted in a record. `None`: nothing.
///
/// # Errors
/// As `read(2)`; `InvalidData` for something that is no note.
pub fn read(record: &File) -> io::Result<Option<Noted>> {
    let mut length = [0; LENGTH_BYTES];
    record.read_exact_at(&mut length, 0)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length == 0 {
        return Ok(None);
    }
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the record is malformed");
    if length > IDENTITY_BYTES + MAX_PATH_BYTES {
        return Err(malformed());
    }
    let mut content = vec![0; length];
    record.read_exact_at(&mut content, LENGTH_BYTES as u64)?;
    let (device, rest) = content.split_first_chunk::<8>().ok_or_else(malformed)?;
    let (inode, path) = rest.split_first_chunk::<8>().ok_or_else(malformed)?;
    let identity = (u64::from_be_bytes(*device), u64::from_be_bytes(*inode));
    if path.first() != Some(&b'/') || path.contains(&0) {
        return Err(malformed());
    }
    Ok(Some(Noted {
        path: path.to_vec(),
        identity: (identity != Identity::default()).then_some(identity),
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn noted_file_is_read_again_until_the_record_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        let root = dir.path().canonicalize().unwrap();
        let record = Record::create().unwrap();
        assert!(!record.is_set());
        assert_eq!(read(&record.0).unwrap(), None);
        for (name, identity) in [
            (&b"long-\xff-name"[..], None),
            (&b"short"[..], Some((7, 9))),
        ] {
            note_in(&record.0, &directory, name, identity).unwrap();
            assert!(record.is_set());
            let path = [root.as_os_str().as_bytes(), b"/", name].concat();
            assert_eq!(read(&record.0).unwrap(), Some(Noted { path, identity }));
        }
        write_all_at(&record.0, &[0; LENGTH_BYTES], 0).unwrap();
        assert!(!record.is_set());
        assert_eq!(read(&record.0).unwrap(), None);
    }

    #[test]
    fn content_that_is_no_note_is_an_error() {
        for content in [
            &[0xff; 64][..],
            &[0, 0, 0, 3, 1, 2, 3],
            // Without a path, and with a relative one.
            &[&[0u8, 0, 0, 16][..], &[0; 16]].concat(),
            &[&[0u8, 0, 0, 17][..], &[0; 16], b"a"].concat(),
        ] {
            let record = Record::create().unwrap();
            write_all_at(&record.0, content, 0).unwrap();
            assert!(record.is_set());
            assert!(read(&record.0).is_err(), "{}", content.escape_ascii());
        }
    }

    #[test]
    fn message_of_a_panic_is_not_part_of_the_record() {
        let mut record = Record::create().unwrap();
        record.0.write_all(b"thread panicked").unwrap();
        assert!(!record.is_set());
    }
}
