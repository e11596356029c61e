//! The listening TCP sockets of the box, from the kernel's tables in `/proc`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use agentbox_contracts::ports::{ListeningPort, PortList};

/// The limit of listed sockets.
const MAX_SOCKETS: usize = 1_024;
/// The limit of bytes that are read of one table: some 100,000 sockets.
const MAX_TABLE_BYTES: u64 = 16 * 1024 * 1024;
/// The limit of descriptors that are read to find the processes of the sockets.
const MAX_DESCRIPTORS: usize = 65_536;
/// The state of a listening socket in the tables.
const LISTEN: &str = "0A";

/// A listening socket.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    address: IpAddr,
    port: u16,
    inode: u64,
}

/// Lists the listening sockets by port, without those of this process.
pub(super) fn list() -> io::Result<PortList> {
    let mut sockets = read_table(Path::new("/proc/net/tcp"))?;
    // A kernel without IPv6 has no such table.
    sockets.extend(read_table(Path::new("/proc/net/tcp6")).unwrap_or_default());
    let mut by_inode: BTreeMap<u64, Option<Process>> =
        sockets.iter().map(|socket| (socket.inode, None)).collect();
    find_processes(&mut by_inode);
    sockets.sort_by_key(|socket| (socket.port, socket.address));
    let own = std::process::id();
    let ports = sockets.into_iter().filter_map(|socket| {
        let process = by_inode.get(&socket.inode).and_then(Option::as_ref);
        if process.is_some_and(|process| process.pid == own) {
            return None;
        }
        Some(ListeningPort {
            port: socket.port.into(),
            address: socket.address.to_string(),
            pid: process.map(|process| process.pid),
            process: process.map_or_else(String::new, |process| process.name.clone()),
        })
    });
    Ok(PortList {
        ports: ports.take(MAX_SOCKETS).collect(),
    })
}

fn read_table(path: &Path) -> io::Result<Vec<Socket>> {
    let lines = BufReader::new(File::open(path)?.take(MAX_TABLE_BYTES)).lines();
    let sockets = lines.map_while(Result::ok);
    Ok(sockets
        .filter_map(|line| parse(&line))
        .take(MAX_SOCKETS)
        .collect())
}

/// Parses a line of a table; `None` unless it is a listening socket.
fn parse(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    let (address, port) = local.split_once(':')?;
    Some(Socket {
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        inode,
    })
}

/// Parses an address: words of 32 bits, each printed as a number of this machine's byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        let digits = text.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

#[derive(Debug)]
struct Process {
    pid: u32,
    name: String,
}

/// Finds the first process of each socket. The descriptors of a process whose user is another one
/// may be hidden from boxd.
fn find_processes(sockets: &mut BTreeMap<u64, Option<Process>>) {
    let Ok(processes) = fs::read_dir("/proc") else {
        return;
    };
    let mut left = MAX_DESCRIPTORS;
    for entry in processes.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.filter_map(Result::ok) {
            if left == 0 {
                return;
            }
            left -= 1;
            if let Some(inode) = socket_of(&descriptor.path())
                && let Some(process) = sockets.get_mut(&inode)
                && process.is_none()
            {
                *process = Some(Process {
                    pid,
                    name: name_of(&entry.path()),
                });
            }
        }
    }
}

/// The inode of the socket that a descriptor refers to.
fn socket_of(descriptor: &Path) -> Option<u64> {
    let target = fs::read_link(descriptor).ok()?;
    let inode = target.to_str()?.strip_prefix("socket:[")?;
    inode.strip_suffix(']')?.parse().ok()
}

/// The name of a process, at most 15 bytes.
fn name_of(process: &Path) -> String {
    let name = fs::read(process.join("comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn line_of_a_table_is_parsed_if_the_socket_listens() {
        let listening = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 \
                         00000000  1000        0 33711 1 0000000000000000 100 0 0 10 0";
        assert_eq!(
            parse(listening),
            Some(Socket {
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: 8080,
                inode: 33_711,
            })
        );
        let v6 = "   1: 00000000000000000000000001000000:0050 \
                  00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 \
                  0 0 9 1 0000000000000000 100 0 0 10 0";
        assert_eq!(
            parse(v6),
            Some(Socket {
                address: IpAddr::V6(Ipv6Addr::LOCALHOST),
                port: 80,
                inode: 9,
            })
        );
        for other in [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid",
            &listening.replace(" 0A ", " 01 "),
            &listening.replace("0100007F", "0100007"),
            "",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
