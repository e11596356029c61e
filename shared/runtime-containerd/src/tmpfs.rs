//! Mounts of tmpfs on this machine. Each is mounted into one box.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// `MS_NOSYMFOLLOW` of Linux 5.10, which nix does not name.
pub const NO_SYMLINKS: MsFlags = MsFlags::from_bits_retain(256);

/// Mounts an empty tmpfs in place of any other. Set-user-ID programs and device files have no
/// effect in it.
///
/// # Errors
/// When it cannot be mounted: the driver must be root in the machine's mount namespace.
pub fn mount_fresh(name: &str, directory: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    unmount(directory)?;
    std::fs::create_dir_all(directory)?;
    let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let attempt = |flags| mount(Some(name), directory, Some("tmpfs"), flags, Some(options));
    match attempt(flags) {
        // An older kernel.
        Err(Errno::EINVAL) if flags.contains(NO_SYMLINKS) => attempt(flags - NO_SYMLINKS),
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
