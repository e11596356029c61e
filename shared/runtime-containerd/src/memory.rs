//! A box's files in memory besides its output: `/dev/shm`, `/etc/hosts`, and `/tmp` if the root
//! file system is read-only.
//!
//! * I1. They are in one tmpfs of this machine, which is as large as the box's memory limit. Its
//!   pages count as the box's memory.
//! * I2. The driver writes into it before the container is created, and never reads it: its content
//!   is not trusted.

use std::fs::Permissions;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use agentbox_contracts::units::Bytes;
use nix::mount::MsFlags;

use crate::tmpfs;

/// Inside the tmpfs.
pub const SHM: &str = "shm";
pub const TMP: &str = "tmp";
pub const HOSTS: &str = "hosts";

/// A file for each page of the memory, so that empty files have a bound too.
const PAGE_BYTES: u64 = 4096;

/// Mounts a tmpfs with empty directories in place of any other.
///
/// # Errors
/// As [`tmpfs::mount_fresh`].
pub fn mount_fresh(directory: &Path, limit: Bytes) -> io::Result<()> {
    let options = format!(
        "size={},nr_inodes={},mode=0755",
        limit.0,
        limit.0 / PAGE_BYTES
    );
    tmpfs::mount_fresh("agentbox-memory", directory, MsFlags::empty(), &options)?;
    for name in [SHM, TMP] {
        let path = directory.join(name);
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o1777))?;
    }
    Ok(())
}

/// Writes the box's `/etc/hosts`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_hosts(directory: &Path, hostname: &str, address: Ipv4Addr) -> io::Result<()> {
    let path = directory.join(HOSTS);
    std::fs::write(&path, hosts(hostname, address))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o644))
}

fn hosts(hostname: &str, address: Ipv4Addr) -> String {
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         {address}\t{hostname}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file_names_the_box_and_localhost_only() {
        assert_eq!(
            hosts("env-1", Ipv4Addr::new(10, 160, 0, 5)),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.160.0.5\tenv-1\n"
        );
    }
}
