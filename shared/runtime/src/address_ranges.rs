//! The address ranges of network policies. The check of a request and the drivers use them.
//!
//! * I1. No policy opens an address of [`ALWAYS_DENIED_V4`] or [`ALWAYS_DENIED_V6`].
//! * I2. "The internet" excludes [`PRIVATE_V4`] and [`PRIVATE_V6`]; an egress CIDR may open them.

use ipnet::IpNet;

/// IPv4: this network, loopback, link-local with the metadata address, and all from
/// multicast upwards (multicast, reserved, broadcast).
pub const ALWAYS_DENIED_V4: [&str; 4] =
    ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"];

/// IPv6: unspecified and loopback, link-local, multicast, a metadata address, and the ranges
/// that carry IPv4 (mapped, translated, 6to4), where the IPv4 rules would not hold.
pub const ALWAYS_DENIED_V6: [&str; 7] = [
    "::/127",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::254/128",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "2002::/16",
];

/// IPv4 that is not the public internet: private networks, carrier-grade NAT (RFC 6598), IETF
/// protocol assignments and benchmarks. Documentation ranges are absent: some networks use them.
pub const PRIVATE_V4: [&str; 6] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
];

/// IPv6 that is not the public internet: unique local addresses.
pub const PRIVATE_V6: [&str; 1] = ["fc00::/7"];

/// Every address.
pub const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// Parses a list of this module.
pub fn networks(ranges: &'static [&'static str]) -> impl Iterator<Item = IpNet> {
    ranges.iter().filter_map(|range| range.parse().ok())
}

/// The always denied range that contains all of `network`: such an egress CIDR opens nothing.
/// `None` for a network that is only partly denied, which opens the rest.
#[must_use]
pub fn denied_range(network: &IpNet) -> Option<&'static str> {
    ALWAYS_DENIED_V4
        .into_iter()
        .chain(ALWAYS_DENIED_V6)
        .find(|range| {
            range
                .parse()
                .is_ok_and(|range: IpNet| range.contains(network))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_parses_as_a_truncated_network() {
        for ranges in [
            &ALWAYS_DENIED_V4[..],
            &ALWAYS_DENIED_V6,
            &PRIVATE_V4,
            &PRIVATE_V6,
            &EVERYWHERE,
        ] {
            let parsed: Vec<IpNet> = networks(ranges).collect();
            assert_eq!(parsed.len(), ranges.len());
            for (network, range) in parsed.iter().zip(ranges) {
                assert_eq!(*network, network.trunc(), "{range}");
            }
        }
    }

    #[test]
    fn denied_range_contains_itself() {
        for range in ALWAYS_DENIED_V4.into_iter().chain(ALWAYS_DENIED_V6) {
            let network: IpNet = range.parse().unwrap();
            assert_eq!(denied_range(&network), Some(range));
        }
    }

    #[test]
    fn network_that_is_only_partly_denied_has_no_denied_range() {
        for (network, range) in [
            ("169.254.169.254/32", Some("169.254.0.0/16")),
            ("255.255.255.255/32", Some("224.0.0.0/3")),
            ("::1/128", Some("::/127")),
            ("::ffff:169.254.169.254/128", Some("::ffff:0:0/96")),
            ("169.254.0.0/15", None),
            ("10.0.0.0/8", None),
            ("0.0.0.0/0", None),
            ("::/0", None),
            ("fd00::/8", None),
        ] {
            assert_eq!(denied_range(&network.parse().unwrap()), range, "{network}");
        }
    }
}
