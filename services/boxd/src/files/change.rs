//! Creating a directory, and changing the mode, owner and group of a file.

use agentbox_contracts::error::{ErrorCode, shortened};
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::{Change, MakeDirectory, Stored};
use rustix::fs::{Gid, Mode, OFlags, Uid, chmod, chown, fchmod, mkdirat, openat, stat};
use rustix::io::Errno;

use super::caller::Caller;
use super::failure::{Failure, OnPath as _, Result};
use super::location::{DEFAULT_DIRECTORY_MODE, Location, create_parents, file_type, split};
use super::metadata::{Describer, PERMISSIONS};

/// Creates a directory. One that exists, also through a link, is no failure and is not changed.
///
/// # Errors
/// As `mkdir(2)`.
pub fn make_directory(caller: &mut Caller, path: &[u8], request: &MakeDirectory) -> Result<()> {
    if request.parents {
        create_parents(path)?;
    }
    let mode = request.mode.map(permissions).transpose()?;
    let mode = mode.unwrap_or(Mode::from_raw_mode(DEFAULT_DIRECTORY_MODE));
    let made = match split(path) {
        Some(_) => make(&Location::of(path)?, mode, request.mode.is_some()),
        // `/` and the like: it exists, or a part of it does not.
        None => stat(path).and(Err(Errno::EXIST)),
    };
    let created = match made {
        Ok(()) => true,
        Err(Errno::EXIST) if stat(path).is_ok_and(|found| file_type(&found).is_dir()) => false,
        Err(errno) => return Err(Failure::of(path, errno)),
    };
    caller.send(Output::Stored(Stored {
        created,
        etag: String::new(),
    }))
}

/// Creates a directory; with this mode exactly, if it is `exact`.
fn make(location: &Location, mode: Mode, exact: bool) -> rustix::io::Result<()> {
    let name = location.name.as_slice();
    mkdirat(&location.directory, name, mode)?;
    if !exact {
        return Ok(());
    }
    // mkdir(2) ignores the set-uid and set-gid bits. The descriptor is never that of a link, which
    // another user may have put into the place of the directory.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(&location.directory, name, flags, Mode::empty()) {
        Ok(made) => fchmod(made, mode),
        // The mode that mkdir(2) has set forbids it to this user.
        Err(Errno::ACCESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Changes a file, the target of a link, and answers its description.
///
/// # Errors
/// `UserNotFound`, and as `chown(2)`, `chmod(2)`.
pub fn change(caller: &mut Caller, path: &[u8], request: &Change) -> Result<()> {
    let describer = Describer::read();
    let mode = request.mode.map(permissions).transpose()?;
    let owner = id("owner", &request.owner, |text| describer.names().uid(text))?;
    let group = id("group", &request.group, |text| describer.names().gid(text))?;
    if owner.is_some() || group.is_some() {
        let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
        chown(path, owner, group).on(path)?;
    }
    // Last: a change of the owner removes the set-uid bit.
    if let Some(mode) = mode {
        chmod(path, mode).on(path)?;
    }
    caller.send(Output::Metadata(describer.describe(path, true)?))
}

/// A mode of a request.
///
/// # Errors
/// `Validation`.
pub fn permissions(mode: u32) -> Result<Mode> {
    if mode > PERMISSIONS {
        return Err(Failure::new(
            ErrorCode::Validation,
            format!("mode: must be at most 7777 (octal), is `{mode:o}`"),
        ));
    }
    Ok(Mode::from_raw_mode(mode))
}

fn id(field: &str, text: &str, find: impl FnOnce(&str) -> Option<u32>) -> Result<Option<u32>> {
    if text.is_empty() {
        return Ok(None);
    }
    let not_found = || {
        let message = format!(
            "{field}: `{}` does not exist in the environment",
            shortened(text)
        );
        Failure::new(ErrorCode::UserNotFound, message)
    };
    find(text).map(Some).ok_or_else(not_found)
}
