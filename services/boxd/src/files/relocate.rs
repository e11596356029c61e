//! Moving a file, a directory or a link.

use agentbox_contracts::files::Move;
use rustix::fs::{RenameFlags, renameat, renameat_with};
use rustix::io::Errno;

use super::failure::{Failure, OnPath as _, Result};
use super::location::{Location, check_path};

/// Renames a file. With `overwrite` it replaces a file, or a directory an empty one.
///
/// # Errors
/// As `renameat2(2)`.
pub fn relocate(path: &[u8], request: &Move) -> Result<()> {
    check_path(&request.to)?;
    let from = Location::of(path)?;
    from.existing()?;
    let to = Location::of(&request.to)?;
    if request.overwrite {
        renameat(
            &from.directory,
            from.name.as_slice(),
            &to.directory,
            to.name.as_slice(),
        )
        .on(&request.to)
    } else {
        rename_to_free_name(&from, &to)
    }
}

/// Renames a file to a name that does not exist.
///
/// # Errors
/// `AlreadyExists`, and as `renameat2(2)`.
fn rename_to_free_name(from: &Location, to: &Location) -> Result<()> {
    let renamed = renameat_with(
        &from.directory,
        from.name.as_slice(),
        &to.directory,
        to.name.as_slice(),
        RenameFlags::NOREPLACE,
    );
    match renamed {
        // A file system without this flag, or a directory that is moved into itself.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if to.stat()?.is_some() {
                return Err(Failure::of(&to.path, Errno::EXIST));
            }
            renameat(
                &from.directory,
                from.name.as_slice(),
                &to.directory,
                to.name.as_slice(),
            )
            .on(&to.path)
        }
        other => other.on(&to.path),
    }
}
