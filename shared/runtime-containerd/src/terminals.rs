//! A box's terminals: an instance of devpts of its own, with a bound. Without it a box could take all
//! terminals of the machine (`kernel.pty.max`).

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::tmpfs;

/// The terminals of one box at once.
const MAX_TERMINALS: u32 = 128;
/// The box's group `tty`.
const TTY: u32 = 5;

/// Mounts an instance without terminals in place of any other. The directory's parent must be of
/// this instance only. `owner` is the box's root on this machine.
///
/// # Errors
/// When it cannot be mounted: the driver must be root in the machine's mount namespace.
pub fn mount_fresh(directory: &Path, owner: u32) -> io::Result<()> {
    tmpfs::unmount(directory)?;
    // Closed to the machine's other users: some of them may have the box's user id.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    // As runc mounts it. A terminal belongs to the user that opens it; the group is one of this machine.
    let group = owner + TTY;
    let options = format!("newinstance,ptmxmode=0666,mode=0620,gid={group},max={MAX_TERMINALS}");
    let (name, flags) = (
        "agentbox-terminals",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
    );
    mount(
        Some(name),
        directory,
        Some("devpts"),
        flags,
        Some(options.as_str()),
    )?;
    // The kernel gives both to this machine's root, which a user namespace does not have.
    for path in [directory, &directory.join("ptmx")] {
        chown(path, Some(owner), Some(owner))?;
    }
    Ok(())
}
