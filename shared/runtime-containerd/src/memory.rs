//! A box's files in memory besides its output: `/dev/shm`, and `/tmp` if the root file system is
//! read-only. Those of a box without a disk also are `/etc/hosts`, `/etc/hostname` and
//! `/etc/resolv.conf`. containerd would mount files of this machine's disk at these paths, which a box
//! could fill beyond its limit of storage.
//!
//! * I1. They are in one tmpfs of this machine, which is as large as the box's memory limit. Its
//!   pages count as the box's memory.
//! * I2. The driver writes into it before the container is created, and never reads it: its content
//!   is not trusted.

use std::fs::Permissions;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use agentbox_contracts::units::Bytes;
use k8s_cri::v1::DnsConfig;
use nix::mount::MsFlags;

use crate::tmpfs;

/// Inside the tmpfs.
pub const SHM: &str = "shm";
pub const TMP: &str = "tmp";
pub const HOSTS: &str = "hosts";
pub const HOSTNAME: &str = "hostname";
pub const RESOLV_CONF: &str = "resolv.conf";

/// A file for each page of the memory, so that empty files have a bound too.
const PAGE_BYTES: u64 = 4096;

/// Mounts a tmpfs with empty directories in place of any other. `owner` is the box's root on this
/// machine.
///
/// # Errors
/// As [`tmpfs::mount_fresh`].
pub fn mount_fresh(directory: &Path, limit: Bytes, owner: u32) -> io::Result<()> {
    let options = format!(
        "size={},nr_inodes={},mode=0755,uid={owner},gid={owner}",
        limit.0,
        limit.0 / PAGE_BYTES
    );
    tmpfs::mount_fresh("agentbox-memory", directory, MsFlags::empty(), &options)?;
    for name in [SHM, TMP] {
        let path = directory.join(name);
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o1777))?;
        chown(&path, Some(owner), Some(owner))?;
    }
    Ok(())
}

/// Writes the box's `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`. `owner` is the box's root on
/// this machine.
///
/// # Errors
/// When a file cannot be written.
pub fn write_names(
    directory: &Path,
    hostname: &str,
    address: Ipv4Addr,
    dns: &DnsConfig,
    owner: u32,
) -> io::Result<()> {
    for (name, content) in [
        (HOSTS, hosts(hostname, address)),
        (HOSTNAME, format!("{hostname}\n")),
        (RESOLV_CONF, resolv_conf(dns)),
    ] {
        let path = directory.join(name);
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        chown(&path, Some(owner), Some(owner))?;
    }
    Ok(())
}

fn hosts(hostname: &str, address: Ipv4Addr) -> String {
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         {address}\t{hostname}\n"
    )
}

/// Renders the resolvers as containerd does.
fn resolv_conf(dns: &DnsConfig) -> String {
    let servers = dns.servers.iter();
    let mut text: String = servers
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
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

    #[test]
    fn name_files_have_the_hostname_and_the_resolvers_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let dns = DnsConfig {
            servers: vec!["192.0.2.53".to_owned(), "192.0.2.54".to_owned()],
            options: vec!["ndots:1".to_owned()],
            ..Default::default()
        };
        let address = Ipv4Addr::new(10, 160, 0, 5);
        let owner = nix::unistd::geteuid().as_raw();
        write_names(directory.path(), "env-1", address, &dns, owner).unwrap();
        let read = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read(HOSTNAME), "env-1\n");
        assert_eq!(
            read(RESOLV_CONF),
            "nameserver 192.0.2.53\nnameserver 192.0.2.54\noptions ndots:1\n"
        );
        assert_eq!(read(HOSTS), hosts("env-1", address));
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }
}
