//! Copying a file, a link itself, or a tree.
//!
//! The copy of a file is a temporary file ([`Temporary`]). Any other copy grows under a hidden name beside
//! its target and is renamed when it is complete ([`Hidden`]). A copy has the modes and extended attributes
//! of the original, and belongs to the user who copies.
//!
//! * I1. Another user's program gets no rights of the user who copies it: the set-uid bit is kept only
//!   for the same owner, the set-gid bit only for the same group.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::files::Copy;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fchmod, fstat, ftruncate, mkdirat,
    openat, readlinkat, seek, statat, symlinkat,
};
use rustix::io::Errno;

use super::failure::{Failure, OnPath as _, Result};
use super::location::{Location, MAX_LEVELS, check_path, file_type, open_directory};
use super::metadata::size;
use super::stop;
use super::temporary::{Hidden, Temporary};
use super::write::{copy_attributes, mode_of};

const BUFFER_BYTES: usize = 128 * 1024;
/// The most directories between a path and the root.
const MAX_ANCESTORS: usize = 4096;

/// Copies a file; a directory only when the request is recursive. With `overwrite` the copy replaces a
/// file, or a directory an empty one.
///
/// # Errors
/// `AlreadyExists`, `IsADirectory`, `InvalidPath` for a copy into itself, `Validation` for a device,
/// a FIFO or a socket.
pub fn copy(path: &[u8], request: &Copy) -> Result<()> {
    check_path(&request.to)?;
    let from = Location::of(path)?;
    let stat = from.existing()?;
    let to = Location::of(&request.to)?;
    let is_directory = file_type(&stat).is_dir();
    match to.stat()? {
        Some(_) if !request.overwrite => return Err(Failure::of(&to.path, Errno::EXIST)),
        Some(present) if file_type(&present).is_dir() != is_directory => {
            let errno = if is_directory {
                Errno::NOTDIR
            } else {
                Errno::ISDIR
            };
            return Err(Failure::of(&to.path, errno));
        }
        Some(_) | None => {}
    }
    if is_directory && !request.recursive {
        let rule = "is a directory, and the request is not recursive";
        return Err(Failure::at(path, ErrorCode::IsADirectory, rule));
    }
    if is_directory {
        check_not_inside(&stat, &to)?;
    }
    let copying = Copying { from: path };
    let directory = from.directory.as_fd();
    if file_type(&stat).is_file() {
        let source = copying.open_file(directory, &from.name)?;
        let temporary = Temporary::beside(&to)?;
        copying.fill(&source, &temporary.file)?;
        stop::check()?;
        return temporary.publish(request.overwrite).map(drop).on(&to.path);
    }
    let hidden = Hidden::note(&to).on(&to.path)?;
    copying.entry(
        directory,
        &from.name,
        to.directory.as_fd(),
        hidden.name(),
        0,
    )?;
    hidden.publish(request.overwrite).on(&to.path)
}

/// Fails when `to` is inside the directory that is copied.
fn check_not_inside(from: &Stat, to: &Location) -> Result<()> {
    let mut directory = to.directory.try_clone().on(&to.path)?;
    for _ in 0..MAX_ANCESTORS {
        let stat = fstat(&directory).on(&to.path)?;
        if (stat.st_dev, stat.st_ino) == (from.st_dev, from.st_ino) {
            let rule = "is inside the directory that is copied";
            return Err(Failure::at(&to.path, ErrorCode::InvalidPath, rule));
        }
        let parent = open_directory(&directory, b"..").on(&to.path)?;
        let above = fstat(&parent).on(&to.path)?;
        if (above.st_dev, above.st_ino) == (stat.st_dev, stat.st_ino) {
            return Ok(());
        }
        directory = parent;
    }
    let rule = "has too many directories above it";
    Err(Failure::at(&to.path, ErrorCode::NameTooLong, rule))
}

/// A copy in progress; `from` is the path in messages.
struct Copying<'path> {
    from: &'path [u8],
}

impl Copying<'_> {
    /// Copies `name` to the new name `new`.
    fn entry(
        &self,
        from: BorrowedFd<'_>,
        name: &[u8],
        to: BorrowedFd<'_>,
        new: &[u8],
        level: usize,
    ) -> Result<()> {
        stop::check()?;
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).on(self.from)?;
        match file_type(&stat) {
            FileType::RegularFile => self.file(from, name, to, new),
            FileType::Directory => self.directory(from, name, to, new, level),
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::<u8>::new()).on(self.from)?;
                symlinkat(target, to, new).on(self.from)
            }
            _ => {
                let rule = format!(
                    "contains `{}`, which is a device, a FIFO or a socket",
                    super::failure::shown(name)
                );
                Err(Failure::at(self.from, ErrorCode::Validation, &rule))
            }
        }
    }

    fn file(
        &self,
        from: BorrowedFd<'_>,
        name: &[u8],
        to: BorrowedFd<'_>,
        new: &[u8],
    ) -> Result<()> {
        let source = self.open_file(from, name)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let copy = File::from(openat(to, new, flags, mode).on(self.from)?);
        self.fill(&source, &copy)
    }

    fn open_file(&self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<File> {
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = openat(directory, name, flags, Mode::empty());
        opened.map(File::from).on(self.from)
    }

    /// Copies the content, the mode and the extended attributes to a new file.
    fn fill(&self, source: &File, copy: &File) -> Result<()> {
        let stat = fstat(source).on(self.from)?;
        copy_content(source, copy, self.from)?;
        self.finish(source, &stat, copy)
    }

    fn directory(
        &self,
        from: BorrowedFd<'_>,
        name: &[u8],
        to: BorrowedFd<'_>,
        new: &[u8],
        level: usize,
    ) -> Result<()> {
        if level >= MAX_LEVELS {
            let rule = format!("has more than {MAX_LEVELS} levels of directories");
            return Err(Failure::at(self.from, ErrorCode::NameTooLong, &rule));
        }
        let open = |directory: BorrowedFd<'_>, name: &[u8]| -> Result<OwnedFd> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(directory, name, flags, Mode::empty()).on(self.from)
        };
        let source: OwnedFd = open(from, name)?;
        let stat = fstat(&source).on(self.from)?;
        mkdirat(to, new, Mode::from_raw_mode(0o700)).on(self.from)?;
        let copy = open(to, new)?;
        for entry in Dir::read_from(&source).on(self.from)? {
            let entry = entry.on(self.from)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                self.entry(source.as_fd(), name, copy.as_fd(), name, level + 1)?;
            }
        }
        self.finish(&source, &stat, &copy)
    }

    /// Gives a copy with its content the mode and the extended attributes of its original.
    fn finish(&self, source: impl AsFd, original: &Stat, copy: impl AsFd) -> Result<()> {
        let mode = mode_for(&fstat(&copy).on(self.from)?, original);
        fchmod(&copy, mode).on(self.from)?;
        copy_attributes(source, copy);
        Ok(())
    }
}

/// The mode of `original` for its copy.
fn mode_for(copy: &Stat, original: &Stat) -> Mode {
    let mut mode = mode_of(original);
    if copy.st_uid != original.st_uid {
        mode -= Mode::SUID;
    }
    if copy.st_gid != original.st_gid {
        mode -= Mode::SGID;
    }
    mode
}

/// Copies the content; holes stay holes.
fn copy_content(from: &File, to: &File, path: &[u8]) -> Result<()> {
    let size = size(&fstat(from).on(path)?);
    if size == 0 {
        // Also files that have content without a size, as in `/proc`.
        return copy_range(from, to, 0, u64::MAX, path);
    }
    let mut offset = 0;
    while offset < size {
        let data = match seek(from, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // Only a hole follows.
            Err(Errno::NXIO) => break,
            Err(_) => offset,
        };
        let end = seek(from, SeekFrom::Hole(data)).unwrap_or(size);
        copy_range(from, to, data, end, path)?;
        offset = end.max(data + 1);
    }
    ftruncate(to, size).on(path)
}

fn copy_range(from: &File, to: &File, start: u64, end: u64, path: &[u8]) -> Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut position = start;
    while position < end {
        stop::check()?;
        let wanted = usize::try_from(end - position).unwrap_or(usize::MAX);
        let wanted = wanted.min(BUFFER_BYTES);
        let count = from.read_at(&mut buffer[..wanted], position).on(path)?;
        if count == 0 {
            break;
        }
        to.write_all_at(&buffer[..count], position).on(path)?;
        position += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn holes_of_a_file_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let from = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("from"))
            .unwrap();
        from.write_all_at(b"start", 0).unwrap();
        from.write_all_at(b"middle", 8 * 1024 * 1024).unwrap();
        from.set_len(16 * 1024 * 1024).unwrap();
        let path = dir.path().join("to");
        copy_content(&from, &File::create(&path).unwrap(), b"/from").unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.size(), 16 * 1024 * 1024);
        assert!(
            metadata.blocks() * 512 < 1024 * 1024,
            "{}",
            metadata.blocks()
        );
        let content = std::fs::read(&path).unwrap();
        assert_eq!(&content[..5], b"start");
        assert_eq!(&content[8 * 1024 * 1024..][..6], b"middle");
    }
}
