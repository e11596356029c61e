//! A directory as a tar stream.
//!
//! Names are relative to the directory. Links are stored as links, and hard links as separate files.
//! Devices, FIFOs and sockets are left out.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::files::Archive;
use agentbox_contracts::files::file_output::Output;
use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::caller::{Caller, aborted};
use super::compression::Encoder;
use super::failure::{Failure, OnPath as _, Result};
use super::location::{MAX_LEVELS, file_type};
use super::metadata::{PERMISSIONS, size};
use super::stop;
use super::tar::{self, Kind};

/// Sends the directory's content as a stream of this form.
///
/// # Errors
/// As `open(2)`, `read(2)`; `Conflict` when a file becomes shorter meanwhile.
pub fn pack(caller: &mut Caller, directory: OwnedFd, path: &[u8], archive: Archive) -> Result<()> {
    let chunks = Chunks {
        caller,
        chunk: Vec::with_capacity(MAX_CHUNK),
    };
    let mut packing = Packing {
        path,
        encoder: Encoder::new(archive, chunks),
        buffer: vec![0; MAX_CHUNK],
    };
    packing.directory(&directory, &mut Vec::new(), 0)?;
    tar::write_end(&mut packing.encoder).map_err(gone)?;
    let mut chunks = packing.encoder.finish().map_err(gone)?;
    chunks.flush().map_err(gone)
}

/// The caller is the only writer that can fail.
fn gone(_: io::Error) -> Failure {
    aborted()
}

/// Sends what is written to it in chunks.
struct Chunks<'caller> {
    caller: &'caller mut Caller,
    chunk: Vec<u8>,
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(MAX_CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        if self.chunk.len() == MAX_CHUNK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::copy_from_slice(&self.chunk);
        self.chunk.clear();
        let sent = self.caller.send(Output::Data(chunk));
        sent.map_err(|failure| io::Error::other(failure.message))
    }
}

struct Packing<'path, 'caller> {
    path: &'path [u8],
    encoder: Encoder<Chunks<'caller>>,
    buffer: Vec<u8>,
}

impl Packing<'_, '_> {
    /// Adds the entries of a directory, whose name in the archive is `name`.
    fn directory(&mut self, directory: &OwnedFd, name: &mut Vec<u8>, level: usize) -> Result<()> {
        if level >= MAX_LEVELS {
            let rule = format!("has more than {MAX_LEVELS} levels of directories");
            return Err(Failure::at(self.path, ErrorCode::NameTooLong, &rule));
        }
        for entry in Dir::read_from(directory).on(self.path)? {
            stop::check()?;
            let entry = entry.on(self.path)?;
            let own = entry.file_name().to_bytes();
            if matches!(own, b"." | b"..") {
                continue;
            }
            let before = name.len();
            name.extend_from_slice(own);
            match self.entry(directory.as_fd(), own, name, level) {
                // It was deleted meanwhile.
                Err(failure) if failure.code == ErrorCode::FileNotFound => {}
                other => other?,
            }
            name.truncate(before);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        own: &[u8],
        name: &mut Vec<u8>,
        level: usize,
    ) -> Result<()> {
        let path = self.path;
        let stat = statat(directory, own, AtFlags::SYMLINK_NOFOLLOW).on(path)?;
        match file_type(&stat) {
            FileType::RegularFile => {
                let file = open(directory, own, OFlags::empty()).on(path)?;
                let stat = fstat(&file).on(path)?;
                // It was replaced meanwhile.
                if !file_type(&stat).is_file() {
                    return Err(Failure::of(path, Errno::NOENT));
                }
                self.header(name, &stat, Kind::File, Vec::new())?;
                self.content(&mut File::from(file), size(&stat))
            }
            FileType::Symlink => {
                let target = readlinkat(directory, own, Vec::<u8>::new()).on(path)?;
                self.header(name, &stat, Kind::SymbolicLink, target.into_bytes())
            }
            FileType::Directory => {
                let below = open(directory, own, OFlags::DIRECTORY).on(path)?;
                name.push(b'/');
                self.header(name, &stat, Kind::Directory, Vec::new())?;
                self.directory(&below, name, level + 1)
            }
            _ => Ok(()),
        }
    }

    fn header(&mut self, name: &[u8], stat: &Stat, kind: Kind, link: Vec<u8>) -> Result<()> {
        let entry = tar::Entry {
            path: name.to_vec(),
            link,
            kind,
            mode: stat.st_mode & PERMISSIONS,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if kind == Kind::File { size(stat) } else { 0 },
            modified: stat.st_mtime,
        };
        tar::write_header(&mut self.encoder, &entry).map_err(gone)
    }

    /// Adds the announced number of bytes; those that the file has beyond them are left out.
    fn content(&mut self, file: &mut File, size: u64) -> Result<()> {
        let mut rest = size;
        while rest > 0 {
            stop::check()?;
            let wanted = usize::try_from(rest).unwrap_or(usize::MAX);
            let wanted = wanted.min(self.buffer.len());
            let count = file.read(&mut self.buffer[..wanted]).on(self.path)?;
            if count == 0 {
                let rule = "has a file that became shorter while it was read";
                return Err(Failure::at(self.path, ErrorCode::Conflict, rule));
            }
            let written = self.encoder.write_all(&self.buffer[..count]);
            written.map_err(gone)?;
            rest -= count as u64;
        }
        tar::write_padding(&mut self.encoder, size).map_err(gone)
    }
}

fn open(directory: BorrowedFd<'_>, name: &[u8], more: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(directory, name, flags | more, Mode::empty())
}
