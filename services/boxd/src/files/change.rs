//! Creating a directory, and changing the mode, owner and group of a file.

use agentbox_contracts::error::{ErrorCode, shortened};
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::{Change, MakeDirectory, Stored};
use rustix::fs::{Gid, Mode, Uid, chmod, chown, mkdir, stat};
use rustix::io::Errno;

use super::caller::Caller;
use super::failure::{Failure, OnPath as _, Result};
use super::location::{DEFAULT_DIRECTORY_MODE, create_parents, file_type};
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
    let created = match mkdir(path, mode) {
        Ok(()) => {
            // mkdir(2) ignores the set-uid and set-gid bits, which chmod(2) sets.
            if request.mode.is_some() {
                chmod(path, mode).on(path)?;
            }
            true
        }
        Err(Errno::EXIST) if stat(path).is_ok_and(|found| file_type(&found).is_dir()) => false,
        Err(errno) => return Err(Failure::of(path, errno)),
    };
    caller.send(Output::Stored(Stored {
        created,
        etag: String::new(),
    }))
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
