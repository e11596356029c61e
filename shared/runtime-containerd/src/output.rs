//! A box's output directory: a small tmpfs on this machine, mounted into the box, so
//! that what boxd wrote there outlives boxd.
//!
//! * I1. Nothing in it is trusted: no links are followed on this side (`nosymfollow`),
//!   nothing runs from it, and it cannot grow beyond its size. Its pages count as the
//!   box's memory.

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

/// An empty directory, whatever was there.
///
/// # Errors
/// When it cannot be mounted: the driver must be root in the machine's mount namespace.
pub fn mount_fresh(directory: &Path) -> io::Result<()> {
    unmount(directory)?;
    std::fs::create_dir_all(directory)?;
    // Any user may write: the box's may be anyone.
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
        // An older kernel; the readers refuse links themselves too.
        Err(Errno::EINVAL) => attempt(flags),
        outcome => outcome,
    }?;
    Ok(())
}

/// What is not mounted is not an error.
///
/// # Errors
/// As `umount2(2)`.
pub fn unmount(directory: &Path) -> io::Result<()> {
    // A driver that was killed and one that came after may have mounted one on another.
    loop {
        match umount2(directory, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How boxd says the main command ended. What it did not (or not legibly) say is `None`.
pub fn termination(directory: &Path) -> Option<Termination> {
    Termination::read(&directory.join(TERMINATION_FILE))
        .ok()
        .flatten()
}
