//! A box's output directory: a small tmpfs of this machine that is mounted into the box, so that
//! boxd's files outlive boxd.
//!
//! * I1. Its content is not trusted: no link is followed (`nosymfollow`, and on an older kernel the
//!   readers refuse links), no program runs from it, and its size is limited. Its pages count as the
//!   box's memory.

use std::io;
use std::path::Path;

use agentbox_box_protocol::output;
use agentbox_box_protocol::termination::Termination;
use nix::mount::MsFlags;

use crate::container::TERMINATION_FILE;
use crate::tmpfs;

const MAX_FILES: u32 = 64;

/// Mounts an empty output directory in place of any other. `owner` is the box's root on this machine.
///
/// # Errors
/// As [`tmpfs::mount_fresh`].
pub fn mount_fresh(directory: &Path, owner: u32) -> io::Result<()> {
    // Any user may write, because the box may run as any user. A boxd that is root closes it to the
    // box's other users before their first process.
    let options = format!(
        "size={},nr_inodes={MAX_FILES},mode=0777,uid={owner},gid={owner}",
        output::DIRECTORY_BYTES
    );
    let flags = MsFlags::MS_NOEXEC | tmpfs::NO_SYMLINKS;
    tmpfs::mount_fresh("agentbox-output", directory, flags, &options)
}

/// The claim of the box that boxd wrote; `None` when missing or malformed.
pub fn claim(directory: &Path) -> Option<String> {
    Termination::read_claim(&directory.join(TERMINATION_FILE))
        .ok()
        .flatten()
}

/// The exit status of the main command that boxd wrote; `None` when missing or malformed.
pub fn termination(directory: &Path) -> Option<Termination> {
    Termination::read(&directory.join(TERMINATION_FILE))
        .ok()
        .flatten()
}
