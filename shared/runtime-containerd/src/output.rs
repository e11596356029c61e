//! A box's output directory: a small tmpfs of this machine that is mounted into the box, so that
//! boxd's files outlive boxd.
//!
//! * I1. Its content is not trusted: no link is followed (`nosymfollow`), no program runs from
//!   it, and its size is limited. Its pages count as the box's memory.

use std::io;
use std::path::Path;

use agentbox_box_protocol::output;
use agentbox_box_protocol::termination::Termination;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::container::TERMINATION_FILE;

/// `MS_NOSYMFOLLOW` of Linux 5.10, which nix does not name.
const NO_SYMLINKS: MsFlags = MsFlags::from_bits_retain(256);
const MAX_FILES: u32 = 64;

/// Mounts an empty output directory in place of any other.
///
/// # Errors
/// When it cannot be mounted: the driver must be root in the machine's mount namespace.
pub fn mount_fresh(directory: &Path) -> io::Result<()> {
    unmount(directory)?;
    std::fs::create_dir_all(directory)?;
    // Any user may write, because the box may run as any user. A boxd that is root closes it to the
    // box's other users before their first process.
    let options = format!(
        "size={},nr_inodes={MAX_FILES},mode=0777",
        output::DIRECTORY_BYTES
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let attempt = |flags| {
        mount(
            Some("agentbox-output"),
            directory,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
    };
    match attempt(flags | NO_SYMLINKS) {
        // An older kernel; the readers also refuse links.
        Err(Errno::EINVAL) => attempt(flags),
        outcome => outcome,
    }?;
    Ok(())
}

/// Unmounts the directory; one that is not mounted is not an error.
///
/// # Errors
/// As `umount2(2)`.
pub fn unmount(directory: &Path) -> io::Result<()> {
    // A killed driver and its successor may each have mounted one.
    loop {
        match umount2(directory, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The exit status of the main command that boxd wrote; `None` when missing or malformed.
pub fn termination(directory: &Path) -> Option<Termination> {
    Termination::read(&directory.join(TERMINATION_FILE))
        .ok()
        .flatten()
}
