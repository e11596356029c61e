//! Storing a file.
//!
//! * I1. A file is replaced by a rename (unless the request wants it written in place), so a failed or
//!   aborted upload leaves the target as it was.
//! * I2. Conditions are evaluated twice: before content is taken, and under a lock of the target's
//!   directory just before the rename. Of two conditional writers one wins. A process of the box that
//!   does not take the lock (flock(2)) may still change the target between the check and the rename;
//!   only "must not exist" holds against it too.
//! * I3. Replacing a file needs the permission to write to it, as writing in place does. It keeps its
//!   mode, owner and extended attributes, without file capabilities, which each write removes.
//!
//! Content is not synced to the disk: an environment does not outlive its machine.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::{Archive, Stored, Write};
use rustix::fs::{
    Access, AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, StatxAttributes, StatxFlags,
    XattrFlags, accessat, fchmod, fchown, fgetxattr, flistxattr, flock, fsetxattr, fstat, fstatvfs,
    ftruncate, openat, statx, unlinkat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;

use super::caller::Caller;
use super::change::permissions;
use super::digest::Digests;
use super::failure::{Failure, OnPath as _, Result};
use super::location::{Location, create_parents, file_type};
use super::metadata::{PERMISSIONS, etag, matches_strongly, size};
use super::record::{Identity, identity};
use super::temporary::Temporary;
use super::{record, stop, unpack};

/// The mode of a new file.
const DEFAULT_MODE: u32 = 0o644;
/// How long the lock of a directory is awaited.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// The most bytes of extended attributes, and of one of them: the kernel's limit.
const MAX_XATTR_BYTES: usize = 64 * 1024;

/// Answers `ready`, takes the content and answers `stored`.
///
/// # Errors
/// See the error words of the contract; [`super::caller::aborted`].
pub fn write(caller: &mut Caller, path: &[u8], request: &Write) -> Result<()> {
    let archive = Archive::try_from(request.archive).unwrap_or(Archive::None);
    if archive != Archive::None {
        return unpack::unpack(caller, path, request, archive);
    }
    let mode = request.mode.map(permissions).transpose()?;
    let digests = Digests::new(&request.digests)?;
    if request.parents {
        create_parents(path)?;
    }
    let target = Location::of_target(path)?;
    let stored = if request.atomic {
        replace(caller, &target, request, mode, digests)?
    } else {
        write_in_place(caller, &target, request, mode, digests)?
    };
    caller.send(Output::Stored(stored))
}

fn replace(
    caller: &mut Caller,
    target: &Location,
    request: &Write,
    mode: Option<Mode>,
    mut digests: Digests,
) -> Result<Stored> {
    let before = check_conditions(target, request)?;
    if before.is_some() {
        check_not_mounted(target)?;
    }
    check_room(target, request.length, 0)?;
    let mut temporary = Temporary::beside(target)?;
    caller.send(Output::Ready(()))?;
    let mut content = caller.content();
    while let Some(chunk) = content.next_chunk()? {
        digests.update(&chunk);
        temporary.file.write_all(&chunk).on(&target.path)?;
    }
    digests.verify()?;
    let lock = lock(target, request)?;
    let before = check_conditions(target, request)?;
    if let Some(before) = &before {
        keep_owner(&temporary.file, before, &target.path)?;
    }
    let kept = before.map(|before| Mode::from_raw_mode(before.st_mode));
    let mode = mode.or(kept).unwrap_or(Mode::from_raw_mode(DEFAULT_MODE));
    fchmod(&temporary.file, mode).on(&target.path)?;
    if before.is_some() {
        keep_attributes(&temporary.file, target);
    }
    stop::check()?;
    let file = match temporary.publish(!request.if_absent) {
        Ok(file) => file,
        Err(Errno::EXIST) if request.if_absent => return Err(exists(target)),
        Err(Errno::BUSY) => return Err(mounted(target)),
        Err(errno) => return Err(Failure::of(&target.path, errno)),
    };
    // By the descriptor: a process of the box may have taken the file away already.
    let stat = fstat(&file).on(&target.path)?;
    drop(lock);
    Ok(Stored {
        created: before.is_none(),
        etag: etag(&stat),
    })
}

fn write_in_place(
    caller: &mut Caller,
    target: &Location,
    request: &Write,
    mode: Option<Mode>,
    digests: Digests,
) -> Result<Stored> {
    let path = &target.path;
    let lock = lock(target, request)?;
    let before = check_conditions(target, request)?;
    let present = before.as_ref().map_or(0, |before| before.st_blocks * 512);
    check_room(target, request.length, u64::try_from(present).unwrap_or(0))?;
    let mut flags =
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if before.is_none() {
        flags |= OFlags::CREATE | OFlags::EXCL;
    }
    let new_mode = mode.unwrap_or(Mode::from_raw_mode(DEFAULT_MODE));
    let opened = openat(&target.directory, target.name.as_slice(), flags, new_mode);
    let mut file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::EXIST) if request.if_absent => return Err(exists(target)),
        Err(errno) => return Err(Failure::of(path, errno)),
    };
    // It may have been replaced by another kind of file since.
    let opened = fstat(&file).on(path)?;
    if !file_type(&opened).is_file() {
        return Err(not_replaceable(target));
    }
    let created = before.is_none().then(|| Created::note(target, &opened));
    let created = created.transpose()?;
    // Files of size 0, as in `/proc`, cannot all be truncated.
    if before.as_ref().is_some_and(|before| size(before) > 0) {
        ftruncate(&file, 0).on(path)?;
    }
    drop(lock);
    fill(caller, &mut file, digests, mode, path)?;
    if let Some(created) = created {
        created.keep()?;
    }
    Ok(Stored {
        created: before.is_none(),
        etag: etag(&fstat(&file).on(path)?),
    })
}

/// The new file of an upload in place, while it is not complete. It is noted, and removed when it is
/// dropped, unless another one has its name by then.
struct Created<'target> {
    target: &'target Location,
    identity: Identity,
    is_complete: bool,
}

impl<'target> Created<'target> {
    fn note(target: &'target Location, stat: &Stat) -> Result<Self> {
        let created = Self {
            target,
            identity: identity(stat),
            is_complete: false,
        };
        let name = target.name.as_slice();
        record::note(&target.directory, name, Some(created.identity)).on(&target.path)?;
        Ok(created)
    }

    /// The file is complete.
    fn keep(mut self) -> Result<()> {
        record::clear().on(&self.target.path)?;
        self.is_complete = true;
        Ok(())
    }
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        if self.is_complete {
            return;
        }
        let present = self.target.stat().ok().flatten();
        if present.is_some_and(|present| identity(&present) == self.identity) {
            let name = self.target.name.as_slice();
            let _ = unlinkat(&self.target.directory, name, AtFlags::empty());
        }
        let _ = record::clear();
    }
}

/// Writes the content to the opened file.
fn fill(
    caller: &mut Caller,
    file: &mut File,
    mut digests: Digests,
    mode: Option<Mode>,
    path: &[u8],
) -> Result<()> {
    caller.send(Output::Ready(()))?;
    let mut content = caller.content();
    while let Some(chunk) = content.next_chunk()? {
        digests.update(&chunk);
        file.write_all(&chunk).on(path)?;
    }
    digests.verify()?;
    match mode {
        Some(mode) => fchmod(file, mode).on(path),
        None => Ok(()),
    }
}

/// The present file, if there is one, when it may be replaced and the conditions hold.
fn check_conditions(target: &Location, request: &Write) -> Result<Option<Stat>> {
    let absent = || {
        if request.if_match.is_empty() {
            return Ok(None);
        }
        let rule = "does not exist, and If-Match requires it";
        let code = ErrorCode::PreconditionFailed;
        Err(Failure::at(&target.path, code, rule))
    };
    let stat = target.stat()?;
    let Some(found) = &stat else {
        return absent();
    };
    match file_type(found) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Failure::of(&target.path, Errno::ISDIR)),
        _ => return Err(not_replaceable(target)),
    }
    if request.if_absent {
        return Err(exists(target));
    }
    if !request.if_match.is_empty() && !matches_strongly(&request.if_match, &etag(found)) {
        let rule = "has another ETag than If-Match requires";
        return Err(Failure::at(
            &target.path,
            ErrorCode::PreconditionFailed,
            rule,
        ));
    }
    let name = target.name.as_slice();
    match accessat(&target.directory, name, Access::WRITE_OK, AtFlags::empty()) {
        Ok(()) => Ok(stat),
        // It was deleted since.
        Err(Errno::NOENT) => absent(),
        Err(errno) => Err(Failure::of(&target.path, errno)),
    }
}

fn exists(target: &Location) -> Failure {
    let rule = "exists, and If-None-Match requires that it does not";
    Failure::at(&target.path, ErrorCode::PreconditionFailed, rule)
}

fn not_replaceable(target: &Location) -> Failure {
    let rule = "is a device, a FIFO or a socket, which cannot be replaced";
    Failure::at(&target.path, ErrorCode::NotReplaceable, rule)
}

fn mounted(target: &Location) -> Failure {
    let rule = "is a mount point, which cannot be replaced; write it with `atomic=false`";
    Failure::at(&target.path, ErrorCode::NotReplaceable, rule)
}

/// Detects a mount point before content is taken, where the kernel tells; the rename does in any case.
fn check_not_mounted(target: &Location) -> Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let name = target.name.as_slice();
    let found = statx(&target.directory, name, flags, StatxFlags::BASIC_STATS);
    if found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)) {
        return Err(mounted(target));
    }
    Ok(())
}

/// Fails early when content of a known length cannot fit.
fn check_room(target: &Location, length: Option<u64>, reused: u64) -> Result<()> {
    let Some(length) = length else { return Ok(()) };
    let Ok(found) = fstatvfs(&target.directory) else {
        return Ok(());
    };
    let available = found.f_bavail.saturating_mul(found.f_frsize);
    // Synthetic file systems have no blocks.
    if found.f_blocks > 0 && length > available.saturating_add(reused) {
        let rule = format!("needs {length} bytes, and the file system has {available} left");
        return Err(Failure::at(&target.path, ErrorCode::NoSpace, &rule));
    }
    Ok(())
}

/// The lock of the target's directory, released when it is dropped. `None`: the directory cannot be
/// opened for reading, or its file system has no locks.
fn lock(target: &Location, request: &Write) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match openat(&target.directory, ".", flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::ACCESS) if request.if_match.is_empty() => return Ok(None),
        Err(errno) => return Err(Failure::of(&target.path, errno)),
    };
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(directory)),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                stop::check()?;
                sleep(LOCK_PAUSE);
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                let rule = "is in a directory that another process keeps locked (flock)";
                return Err(Failure::at(&target.path, ErrorCode::Busy, rule));
            }
            Err(_) => return Ok(None),
        }
    }
}

fn keep_owner(file: &File, before: &Stat, path: &[u8]) -> Result<()> {
    let present = fstat(file).on(path)?;
    let owner = (present.st_uid != before.st_uid).then(|| Uid::from_raw(before.st_uid));
    let group = (present.st_gid != before.st_gid).then(|| Gid::from_raw(before.st_gid));
    if owner.is_none() && group.is_none() {
        return Ok(());
    }
    fchown(file, owner, group).map_err(|errno| match errno {
        Errno::PERM => Failure::at(
            path,
            ErrorCode::PermissionDenied,
            "belongs to another user, whom a replacement would not keep; write it with \
             `atomic=false`",
        ),
        other => Failure::of(path, other),
    })
}

/// Copies the extended attributes that this user can read and set.
fn keep_attributes(file: &File, target: &Location) {
    let open = |access: OFlags| {
        let flags = access | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(
            &target.directory,
            target.name.as_slice(),
            flags,
            Mode::empty(),
        )
    };
    let Ok(before) = open(OFlags::RDONLY).or_else(|_| open(OFlags::WRONLY)) else {
        return;
    };
    copy_attributes(&before, file);
}

/// Copies the extended attributes from one file to another, without file capabilities. One that
/// cannot be read or set is left out.
pub fn copy_attributes(from: impl AsFd, to: impl AsFd) {
    let mut names = vec![0u8; MAX_XATTR_BYTES];
    let Ok(length) = flistxattr(&from, names.as_mut_slice()) else {
        return;
    };
    names.truncate(length);
    let mut value = vec![0u8; MAX_XATTR_BYTES];
    for name in names.split(|byte| *byte == 0) {
        if name.is_empty() || name == b"security.capability" {
            continue;
        }
        if let Ok(length) = fgetxattr(&from, name, value.as_mut_slice()) {
            let _ = fsetxattr(&to, name, &value[..length], XattrFlags::empty());
        }
    }
}

/// The permission bits of a file as a mode.
#[must_use]
pub fn mode_of(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & PERMISSIONS)
}
