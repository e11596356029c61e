//! The address a request comes from: the peer's, or the one that a trusted proxy forwards. And
//! whether the client uses TLS, which only such a proxy can say.
//!
//! * I1. `X-Forwarded-For` is read only when the connection comes from a configured proxy. The
//!   client is the first address, from the right, that is not such a proxy. The client may have
//!   written the addresses to the left of it itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use agentbox_contracts::audit::client_network;
use axum::http::{Extensions, HeaderMap, HeaderName};
use ipnet::IpNet;

use super::list_header::elements;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address or a CIDR such as 10.0.0.0/8")]
pub(crate) struct InvalidNetwork(String);

/// Reads `10.0.0.0/8`, or an address alone.
///
/// # Errors
/// When the text is neither.
pub(crate) fn network(text: &str) -> Result<IpNet, InvalidNetwork> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| InvalidNetwork(text.to_owned()))
}

/// The client's address, as a request's extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientAddress(pub IpAddr);

impl ClientAddress {
    pub(crate) fn of_peer(peer: SocketAddr) -> Self {
        Self(peer.ip().to_canonical())
    }

    pub(crate) fn is_in(self, networks: &[IpNet]) -> bool {
        networks.iter().any(|network| network.contains(&self.0))
    }

    /// The peer's address, unless the peer is a trusted proxy that forwards another.
    pub(crate) fn find(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let mut client = Self::of_peer(peer);
        let hops: Vec<&str> = elements(headers, &FORWARDED_FOR).collect();
        for hop in hops.iter().rev() {
            if !client.is_in(trusted) {
                break;
            }
            // An entry that cannot be read ends the search.
            let Some(address) = address(hop) else { break };
            client = Self(address);
        }
        client
    }

    /// The address that the server stored with the request.
    pub(crate) fn from_extensions(extensions: &Extensions) -> Self {
        extensions
            .get::<Self>()
            .copied()
            .unwrap_or(Self(IpAddr::V6(Ipv6Addr::UNSPECIFIED)))
    }

    /// The network that is counted as one client.
    pub(crate) fn network(self) -> IpAddr {
        client_network(self.0)
    }
}

/// Whether the client uses TLS, as a request's extension: a trusted proxy says so in
/// `X-Forwarded-Proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverTls;

impl OverTls {
    pub(crate) fn find(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Option<Self> {
        let is_https = elements(headers, &FORWARDED_PROTO)
            .any(|protocol| protocol.eq_ignore_ascii_case("https"));
        (is_https && ClientAddress::of_peer(peer).is_in(trusted)).then_some(Self)
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
        let trusted: Vec<IpNet> = trusted.iter().map(|text| network(text).unwrap()).collect();
        let ClientAddress(address) = ClientAddress::find(peer.parse().unwrap(), &headers, &trusted);
        address.to_string()
    }

    #[test]
    fn forwarded_address_counts_only_behind_a_trusted_proxy() {
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
    fn network_contains_its_own_addresses_only() {
        let cidr = |text: &str| network(text).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(cidr("0.0.0.0/0").contains(&ip("8.8.8.8")));
        assert!(!cidr("0.0.0.0/0").contains(&ip("::1")));
        assert!(cidr("10.1.0.0/16").contains(&ip("10.1.255.255")));
        assert!(!cidr("10.1.0.0/16").contains(&ip("10.2.0.0")));
        assert!(cidr("192.0.2.7").contains(&ip("192.0.2.7")));
        assert!(!cidr("192.0.2.7").contains(&ip("192.0.2.8")));
        assert!(cidr("::/0").contains(&ip("2001:db8::1")));
        for bad in ["", "10.0.0.0/33", "10.0.0.0/", "ten/8", "::/129"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tls_is_reported_by_a_trusted_proxy_only() {
        let trusted = [network("10.0.0.0/8").unwrap()];
        for (peer, protocol, expected) in [
            ("10.0.0.1:9", "https", true),
            ("10.0.0.1:9", "HTTPS, http", true),
            ("10.0.0.1:9", "http", false),
            ("10.0.0.1:9", "", false),
            ("192.0.2.1:9", "https", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-proto", protocol.parse().unwrap());
            let found = OverTls::find(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(found.is_some(), expected, "{peer} {protocol}");
        }
    }

    #[test]
    fn ipv6_client_counts_by_its_64_bit_network() {
        let network = |text: &str| ClientAddress(text.parse().unwrap()).network().to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
    }
}
