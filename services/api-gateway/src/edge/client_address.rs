//! Where a request comes from: the peer, or what a proxy that we trust says.
//!
//! * I1. A forwarding header counts only when the connection comes from a configured
//!   proxy; read from the right, the first address that is not such a proxy is the
//!   client's. What stands further left, the client may have written itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use axum::http::{Extensions, HeaderMap};

/// Addresses with a common beginning, `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a CIDR such as 10.0.0.0/8")]
pub struct InvalidCidr(String);

impl FromStr for Cidr {
    type Err = InvalidCidr;
    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let invalid = || InvalidCidr(text.to_owned());
        let (address, length) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            "" if !text.contains('/') => most,
            length => length.parse().map_err(|_| invalid())?,
        };
        if length > most {
            return Err(invalid());
        }
        Ok(Self { address, length })
    }
}

impl Cidr {
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32 - u32::from(self.length);
                (own.to_bits() ^ other.to_bits())
                    .checked_shr(shift)
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128 - u32::from(self.length);
                (own.to_bits() ^ other.to_bits())
                    .checked_shr(shift)
                    .unwrap_or(0)
                    == 0
            }
            _ => false,
        }
    }
}

/// The client's address, as a request's extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// The peer, unless it is a trusted proxy that says who it speaks for.
    pub(crate) fn find(peer: SocketAddr, headers: &HeaderMap, trusted: &[Cidr]) -> Self {
        let is_trusted = |address: IpAddr| trusted.iter().any(|cidr| cidr.contains(address));
        let mut client = peer.ip().to_canonical();
        let hops: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .collect();
        for hop in hops.iter().rev() {
            if !is_trusted(client) {
                break;
            }
            // What a trusted proxy wrote and we cannot read ends the way back.
            let Some(address) = address(hop) else { break };
            client = address;
        }
        Self(client)
    }

    /// Of a request that came through the server.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions
            .get::<Self>()
            .copied()
            .unwrap_or(Self(IpAddr::V6(Ipv6Addr::UNSPECIFIED)))
    }

    /// What is counted as one client: an IPv4 address, or an IPv6 /64, of which one
    /// client has all.
    pub(crate) fn network(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        }
    }
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn address(hop: &str) -> Option<IpAddr> {
    hop.parse::<IpAddr>()
        .or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip()))
        .or_else(|_| hop.trim_matches(['[', ']']).parse::<IpAddr>())
        .ok()
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let trusted: Vec<Cidr> = trusted.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let ClientAddress(address) = ClientAddress::find(peer.parse().unwrap(), &headers, &trusted);
        address.to_string()
    }

    #[test]
    fn a_forwarding_header_counts_only_behind_a_trusted_proxy() {
        let proxies: &[&str] = &["10.0.0.0/8", "fd00::/8"];
        for (peer, forwarded, trusted, expected) in [
            ("192.0.2.1:9", &["203.0.113.5"][..], &[][..], "192.0.2.1"),
            ("192.0.2.1:9", &["203.0.113.5"], proxies, "192.0.2.1"),
            ("10.0.0.1:9", &["203.0.113.5"], proxies, "203.0.113.5"),
            (
                "10.0.0.1:9",
                &["6.6.6.6, 203.0.113.5"],
                proxies,
                "203.0.113.5",
            ),
            (
                "10.0.0.1:9",
                &["6.6.6.6", "203.0.113.5, 10.9.9.9"],
                proxies,
                "203.0.113.5",
            ),
            ("10.0.0.1:9", &["203.0.113.5:4711"], proxies, "203.0.113.5"),
            ("10.0.0.1:9", &["garbage"], proxies, "10.0.0.1"),
            ("10.0.0.1:9", &[], proxies, "10.0.0.1"),
            ("[fd00::1]:9", &["[2001:db8::7]:1"], proxies, "2001:db8::7"),
            (
                "[::ffff:10.0.0.1]:9",
                &["203.0.113.5"],
                proxies,
                "203.0.113.5",
            ),
        ] {
            assert_eq!(
                find(peer, forwarded, trusted),
                expected,
                "{peer} {forwarded:?}"
            );
        }
    }

    #[test]
    fn a_cidr_holds_its_own_addresses_only() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(cidr("0.0.0.0/0").contains(ip("8.8.8.8")));
        assert!(!cidr("0.0.0.0/0").contains(ip("::1")));
        assert!(cidr("10.1.0.0/16").contains(ip("10.1.255.255")));
        assert!(!cidr("10.1.0.0/16").contains(ip("10.2.0.0")));
        assert!(cidr("192.0.2.7").contains(ip("192.0.2.7")));
        assert!(!cidr("192.0.2.7").contains(ip("192.0.2.8")));
        assert!(cidr("::/0").contains(ip("2001:db8::1")));
        for bad in ["", "10.0.0.0/33", "10.0.0.0/", "ten/8", "::/129"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_ipv6_client_is_its_64_bit_network() {
        let network = |text: &str| ClientAddress(text.parse().unwrap()).network().to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
    }
}
