//! What no box ever reaches, whatever a request opens: said once, for who checks a
//! request and for the drivers that enforce it.

use ipnet::IpNet;

/// IPv4: this network, loopback, link-local with the metadata address, and all from
/// multicast upwards (multicast, reserved, broadcast).
pub const NEVER_V4: [&str; 4] = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"];

/// IPv6: unspecified and loopback, link-local, multicast, a metadata address, and IPv4
/// in other clothes (mapped, translated, 6to4): there the IPv4 rules would not hold.
pub const NEVER_V6: [&str; 7] = [
    "::/127",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::254/128",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "2002::/16",
];

/// The range of the lists above that `network` lies in as a whole: an egress CIDR that
/// can open nothing. A larger one is no mistake, it opens the rest.
#[must_use]
pub fn never_reached(network: &IpNet) -> Option<&'static str> {
    NEVER_V4.into_iter().chain(NEVER_V6).find(|range| {
        range
            .parse()
            .is_ok_and(|range: IpNet| range.contains(network))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_is_a_network_and_contains_itself() {
        for range in NEVER_V4.into_iter().chain(NEVER_V6) {
            let network: IpNet = range.parse().unwrap();
            assert_eq!(network, network.trunc(), "{range}");
            assert_eq!(never_reached(&network), Some(range));
        }
    }

    #[test]
    fn what_is_only_partly_out_of_reach_may_be_asked_for() {
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
            assert_eq!(never_reached(&network.parse().unwrap()), range, "{network}");
        }
    }
}
