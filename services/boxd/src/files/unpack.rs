//! Unpacking a tar stream into a directory.
//!
//! * I1. Nothing is written outside the directory, whatever the archive holds and whatever processes
//!   of the box do meanwhile: each name of an entry's path is opened in the directory before it,
//!   without following a link.
//! * I2. Links are relative and stay inside. `..` is allowed only at the beginning of a target, where
//!   it is certain what it leads to.
//! * I3. Entries before a refused one stay. A file is complete or not there, and one that it replaces stays
//!   until then ([`Temporary`]).
//!
//! An existing file is replaced; an existing link only by a link. Set-uid, set-gid and sticky bits and
//! owners are kept only when this process is root.

mod directories;
mod links;
mod names;
mod owner;

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::{Archive, Stored, Write};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, futimens, mkdir, mkdirat,
    openat, statat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::caller::{Caller, Content, aborted};
use super::compression::decoder;
use super::digest::Digests;
use super::failure::{Failure, OnPath as _, Result, shown};
use super::location::{
    DEFAULT_DIRECTORY_MODE, Location, create_parents, file_type, open_directory,
};
use super::stop;
use super::tar::{Entry, Kind, Reader, TarError};
use super::temporary::Temporary;
use directories::{Directories, set_directory_mode, times};
pub use names::names;
use owner::give;

const BUFFER_BYTES: usize = 64 * 1024;

/// Answers `ready`, unpacks the content and answers `stored`.
///
/// # Errors
/// `ArchiveInvalid` with the entry's name; `DigestMismatch`; as for the files that are written.
pub fn unpack(caller: &mut Caller, path: &[u8], request: &Write, archive: Archive) -> Result<()> {
    let mut digests = Digests::new(&request.digests)?;
    let created = create_target(path, request)?;
    let root = open_directory(CWD, path).on(path)?;
    caller.send(Output::Ready(()))?;
    let unpacked = {
        let source = Hashing {
            content: caller.content(),
            digests: &mut digests,
        };
        let unpacking = Unpacking {
            root,
            path,
            is_root: geteuid().is_root(),
            directories: Directories::default(),
            buffer: vec![0; BUFFER_BYTES],
        };
        unpacking.run(decoder(archive, source))
    };
    if caller.is_aborted() {
        return Err(aborted());
    }
    unpacked?;
    digests.verify()?;
    caller.send(Output::Stored(Stored {
        created,
        etag: String::new(),
    }))
}

/// Creates the directory if the request allows it; returns whether it did not exist.
fn create_target(path: &[u8], request: &Write) -> Result<bool> {
    let is_missing = matches!(open_directory(CWD, path), Err(Errno::NOENT));
    let condition = |rule| Err(Failure::at(path, ErrorCode::PreconditionFailed, rule));
    if !is_missing && request.if_absent {
        return condition("exists, and If-None-Match requires that it does not");
    }
    // A directory has no ETag.
    if !request.if_match.is_empty()
        && (is_missing || !request.if_match.iter().any(|tag| tag == "*"))
    {
        return condition("has no ETag that If-Match requires");
    }
    if is_missing && request.parents {
        create_parents(path)?;
        match mkdir(path, Mode::from_raw_mode(DEFAULT_DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Failure::of(path, errno)),
        }
    }
    Ok(is_missing)
}

/// The content on its way to the decoder.
struct Hashing<'caller, 'digests> {
    content: Content<'caller>,
    digests: &'digests mut Digests,
}

impl Read for Hashing<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.digests.update(&buffer[..count]);
        Ok(count)
    }
}

struct Unpacking<'path> {
    root: OwnedFd,
    path: &'path [u8],
    is_root: bool,
    directories: Directories,
    buffer: Vec<u8>,
}

impl Unpacking<'_> {
    fn run(mut self, stream: impl Read) -> Result<()> {
        let mut reader = Reader::new(stream);
        while let Some(entry) = reader.next_entry().map_err(unreadable)? {
            stop::check()?;
            let names = names(&entry.path).map_err(|rule| refused(&entry, rule))?;
            // The directory itself, as `tar -C directory .` writes it, keeps its mode.
            if names.is_empty() && entry.kind == Kind::Directory {
                continue;
            }
            let (directory, name) = self.open_parent(&entry, &names)?;
            match entry.kind {
                Kind::Directory => self.unpack_directory(&entry, &directory, name, &names)?,
                Kind::File => self.unpack_file(&entry, directory, name, &mut reader)?,
                Kind::SymbolicLink => self.unpack_symbolic_link(&entry, directory, name, &names)?,
                Kind::HardLink => self.unpack_hard_link(&entry, directory, name)?,
                Kind::Other => {
                    let rule = "is a device, a FIFO or of an unknown type, which are refused";
                    return Err(refused(&entry, rule));
                }
            }
        }
        // To the end of the content: only then its checksums and digests are complete.
        let mut stream = reader.into_source();
        loop {
            stop::check()?;
            match stream.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Err(unreadable(error.into())),
            }
        }
        self.directories.set_all(&self.root)
    }

    /// Opens the directory of an entry, one name after the other. Missing ones are created.
    fn open_parent<'names>(
        &self,
        entry: &Entry,
        names: &'names [Vec<u8>],
    ) -> Result<(OwnedFd, &'names [u8])> {
        let Some((name, parents)) = names.split_last() else {
            return Err(refused(entry, "names no file"));
        };
        let mut directory = open_directory(&self.root, b".").on(self.path)?;
        for parent in parents {
            directory = self.enter(entry, &directory, parent, true)?;
        }
        Ok((directory, name.as_slice()))
    }

    /// Opens a directory by its name in another one, and creates it if `create` and it is missing.
    fn enter(
        &self,
        entry: &Entry,
        directory: &OwnedFd,
        name: &[u8],
        create: bool,
    ) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(directory, name, flags, Mode::empty());
        let opened = match open() {
            Err(Errno::NOENT) if create => {
                match mkdirat(directory, name, Mode::from_raw_mode(DEFAULT_DIRECTORY_MODE)) {
                    Ok(()) | Err(Errno::EXIST) => open(),
                    Err(errno) => Err(errno),
                }
            }
            other => other,
        };
        opened.map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => {
                let rule = "leads through a symbolic link or a file that exists";
                refused(entry, rule)
            }
            other => self.failed(entry, other),
        })
    }

    fn unpack_directory(
        &mut self,
        entry: &Entry,
        directory: &OwnedFd,
        name: &[u8],
        names: &[Vec<u8>],
    ) -> Result<()> {
        let mode = self.mode(entry);
        match mkdirat(directory, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => match self.existing(entry, directory, name)? {
                Some(stat) if file_type(&stat).is_dir() => {}
                _ => {
                    let rule = "is a directory in place of an existing file or link";
                    return Err(refused(entry, rule));
                }
            },
            Err(errno) => return Err(self.failed(entry, errno)),
        }
        self.set_owner(entry, directory, name, FileType::Directory)?;
        if self.directories.add(names, mode, entry.modified) {
            return Ok(());
        }
        set_directory_mode(directory, name, mode).map_err(|errno| self.failed(entry, errno))
    }

    fn unpack_file(
        &mut self,
        entry: &Entry,
        directory: OwnedFd,
        name: &[u8],
        content: &mut impl Read,
    ) -> Result<()> {
        self.check_replaceable(entry, &directory, name, false)?;
        let target = Location {
            directory,
            name: name.to_vec(),
            path: self.path_of(entry),
        };
        let mut temporary = Temporary::beside(&target)?;
        let file = &mut temporary.file;
        self.fill(entry, file, content)?;
        if let Some((owner, group)) = self.owner(entry) {
            self.ignore_foreign(entry, fchown(&*file, Some(owner), Some(group)))?;
        }
        let mode = Mode::from_raw_mode(self.mode(entry));
        fchmod(&*file, mode).map_err(|errno| self.failed(entry, errno))?;
        // Without its time the content is complete.
        let _ = futimens(&*file, &times(entry.modified));
        match temporary.publish(true) {
            Ok(_) => Ok(()),
            Err(errno) => Err(self.not_replaced(entry, errno)),
        }
    }

    /// Writes the content of an entry to a file.
    fn fill(&mut self, entry: &Entry, file: &mut File, content: &mut impl Read) -> Result<()> {
        loop {
            stop::check()?;
            let count = match content.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error.into())),
            };
            file.write_all(&self.buffer[..count]).map_err(|error| {
                self.failed(entry, Errno::from_io_error(&error).unwrap_or(Errno::IO))
            })?;
        }
    }

    /// Refuses an entry whose name is taken by something that it must not replace. A file is replaced by a
    /// file or a link, and a link only by a link.
    fn check_replaceable(
        &self,
        entry: &Entry,
        directory: &OwnedFd,
        name: &[u8],
        for_link: bool,
    ) -> Result<()> {
        let Some(stat) = self.existing(entry, directory, name)? else {
            return Ok(());
        };
        match file_type(&stat) {
            FileType::RegularFile => Ok(()),
            FileType::Symlink if for_link => Ok(()),
            FileType::Symlink => Err(refused(entry, "would be written through an existing link")),
            _ => {
                let rule = "is in place of an existing directory, device, FIFO or socket";
                Err(refused(entry, rule))
            }
        }
    }

    /// The failure of the rename to the entry's name.
    fn not_replaced(&self, entry: &Entry, errno: Errno) -> Failure {
        match errno {
            Errno::BUSY => Failure::new(
                ErrorCode::NotReplaceable,
                format!("`{}` is a mount point", shown(&entry.path)),
            ),
            other => self.failed(entry, other),
        }
    }

    fn existing(&self, entry: &Entry, directory: &OwnedFd, name: &[u8]) -> Result<Option<Stat>> {
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed(entry, errno)),
        }
    }

    fn mode(&self, entry: &Entry) -> u32 {
        entry.mode & if self.is_root { 0o7777 } else { 0o777 }
    }

    /// The owner to set, when this process is root.
    fn owner(&self, entry: &Entry) -> Option<(Uid, Gid)> {
        let is_id = entry.uid != u32::MAX && entry.gid != u32::MAX;
        (self.is_root && is_id).then(|| (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
    }

    fn set_owner(
        &self,
        entry: &Entry,
        directory: &OwnedFd,
        name: &[u8],
        kind: FileType,
    ) -> Result<()> {
        match self.owner(entry) {
            Some(owner) => self.ignore_foreign(entry, give(directory, name, kind, owner)),
            None => Ok(()),
        }
    }

    /// Ignores that an owner could not be set because the environment does not have the id: the file then
    /// stays root's.
    fn ignore_foreign(&self, entry: &Entry, result: rustix::io::Result<()>) -> Result<()> {
        match result {
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::OVERFLOW) => Ok(()),
            Err(errno) => Err(self.failed(entry, errno)),
        }
    }

    fn path_of(&self, entry: &Entry) -> Vec<u8> {
        [self.path, b"/", entry.path.as_slice()].concat()
    }

    fn failed(&self, entry: &Entry, errno: Errno) -> Failure {
        Failure::of(&self.path_of(entry), errno)
    }
}

fn refused(entry: &Entry, rule: &str) -> Failure {
    let message = format!("archive: entry `{}` {rule}", shown(&entry.path));
    Failure::new(ErrorCode::ArchiveInvalid, message)
}

fn unreadable(error: TarError) -> Failure {
    Failure::new(ErrorCode::ArchiveInvalid, format!("archive: {error}"))
}
