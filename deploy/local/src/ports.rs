//! Free TCP ports on 127.0.0.1, reserved for one instance.
//!
//! * I1. Each port is locked by a file while its [`Ports`] exists: two instances that start
//!   together could otherwise get the same free port.
//! * I2. The ports are below the kernel's range for outgoing connections, which could otherwise
//!   occupy a port while its program restarts.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port cannot be reserved.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("no free TCP port between {FIRST} and {}", FIRST + COUNT)]
    NoneFree,
    #[error("cannot reserve a TCP port: {0}")]
    Reserve(#[from] io::Error),
    #[error("port {port} is in use{by}; stop that program or set AGENTBOX_PORT to another port")]
    InUse { port: u16, by: String },
}

#[derive(Debug)]
pub(crate) struct Ports {
    directory: PathBuf,
    held: Vec<File>,
}

impl Ports {
    pub(crate) fn new() -> Result<Self, PortError> {
        let user = nix::unistd::getuid();
        let directory = std::env::temp_dir().join(format!("agentbox-ports-{user}"));
        std::fs::create_dir_all(&directory)?;
        Ok(Self {
            directory,
            held: Vec::new(),
        })
    }

    /// Reserves a port on which no program listens.
    pub(crate) fn take(&mut self) -> Result<u16, PortError> {
        let start = rand::random::<u16>() % COUNT;
        for step in 0..COUNT {
            let port = FIRST + (start + step) % COUNT;
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(self.directory.join(port.to_string()))?;
            if file.try_lock().is_err() || !is_free(IpAddr::V4(Ipv4Addr::LOCALHOST), port) {
                continue;
            }
            self.held.push(file);
            return Ok(port);
        }
        Err(PortError::NoneFree)
    }
}

/// Checks that no program listens on a port.
///
/// # Errors
/// [`PortError::InUse`], with the program if `/proc` shows it.
pub(crate) fn require_free(host: IpAddr, port: u16) -> Result<(), PortError> {
    if is_free(host, port) {
        return Ok(());
    }
    let by = listener_on(port).map_or_else(String::new, |program| format!(" by {program}"));
    Err(PortError::InUse { port, by })
}

fn is_free(host: IpAddr, port: u16) -> bool {
    TcpListener::bind(SocketAddr::new(host, port)).is_ok()
}

/// The program that listens on a port, such as `nginx (pid 812)`. It is the process in `/proc`
/// that holds the inode of the listening socket.
fn listener_on(port: u16) -> Option<String> {
    let wanted = format!(":{port:04X}");
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| {
            table.lines().skip(1).find_map(|line| {
                let fields: Vec<&str> = line.split_ascii_whitespace().collect();
                let listening = *fields.get(3)? == "0A" && fields.get(1)?.ends_with(&wanted);
                listening.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
            })
        })?;
    std::fs::read_dir("/proc").ok()?.find_map(|entry| {
        let directory = entry.ok()?.path();
        let pid = directory.file_name()?.to_str()?.parse::<u32>().ok()?;
        let holds = std::fs::read_dir(directory.join("fd"))
            .ok()?
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .any(|target| target.as_os_str() == inode.as_str());
        let name = std::fs::read_to_string(directory.join("comm")).ok()?;
        holds.then(|| format!("{} (pid {pid})", name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_instances_get_different_ports() {
        let mut first = Ports::new().unwrap();
        let mut second = Ports::new().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..50 {
            assert!(seen.insert(first.take().unwrap()));
            assert!(seen.insert(second.take().unwrap()));
        }
    }

    #[test]
    fn port_in_use_is_refused_with_the_name_of_its_program() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = require_free(IpAddr::V4(Ipv4Addr::LOCALHOST), port).unwrap_err();
        let pid = std::process::id();
        assert!(
            error.to_string().contains(&format!("(pid {pid})")),
            "{error}"
        );
    }
}
