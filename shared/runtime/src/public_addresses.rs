//! Connections to hosts that a user names, which must not lead into private networks.
//!
//! * I1. A name is resolved once for each connection, and the connection uses a resolved address that
//!   passed the check: a name that resolves to another address later has no effect.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpStream, lookup_host};

use crate::address_ranges::{ALWAYS_DENIED_V4, ALWAYS_DENIED_V6, PRIVATE_V4, PRIVATE_V6, networks};

/// IETF protocol assignments, with Teredo, which carries IPv4.
const TUNNELS_V6: [&str; 1] = ["2001::/23"];
/// The deadline of a connection, with the resolution of its name.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The addresses of the public internet.
#[derive(Debug)]
pub struct PublicAddresses {
    denied: Vec<IpNet>,
}

impl PublicAddresses {
    /// All but those of `denied`.
    #[must_use]
    pub fn except(denied: Vec<IpNet>) -> Self {
        Self {
            denied: networks(&ALWAYS_DENIED_V4)
                .chain(networks(&ALWAYS_DENIED_V6))
                .chain(networks(&PRIVATE_V4))
                .chain(networks(&PRIVATE_V6))
                .chain(networks(&TUNNELS_V6))
                .chain(denied)
                .collect(),
        }
    }

    /// Whether an address is neither in a denied network nor one of `own`.
    #[must_use]
    pub fn contains(&self, address: IpAddr, own: &BTreeSet<IpAddr>) -> bool {
        // Of IPv6 only global unicast (2000::/3): outside of it are old and local forms that carry
        // IPv4, such as ::127.0.0.1 and 64:ff9b:1::/48.
        let is_global = match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(address) => address.segments()[0] >> 13 == 1,
        };
        is_global
            && !own.contains(&address)
            && !self.denied.iter().any(|network| network.contains(&address))
    }
}

/// A host in lower case, an IPv6 address without its brackets.
#[must_use]
pub fn bare_host(host: &str) -> String {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.to_ascii_lowercase()
}

/// Connects to the first address of `host` that `is_allowed` and answers. It gets the addresses of this
/// machine too, which may be public ones. `None`: no address of the host is allowed.
///
/// # Errors
/// When the name cannot be resolved, or no allowed address answers within 10 s.
pub async fn connect(
    host: &str,
    port: u16,
    is_allowed: impl Fn(IpAddr, &BTreeSet<IpAddr>) -> bool,
) -> io::Result<Option<TcpStream>> {
    let own = own_addresses()?;
    let connect = async {
        let mut failure = None;
        for address in lookup_host((host, port)).await? {
            if !is_allowed(address.ip(), &own) {
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(Some(stream)),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), Err)
    };
    tokio::time::timeout(CONNECT_DEADLINE, connect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect())
}
