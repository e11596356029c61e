//! Reachability by real traffic, for targets that only a cluster has; the conformance suite has the
//! others. Each target that must be closed is shown to answer a Pod without a policy.

use std::net::{IpAddr, Ipv4Addr};

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime_kubernetes::Config;

mod change;
mod closed;
mod destinations;
mod felix;
mod first_instruction;
mod ingress;
mod names;
pub mod places;
pub mod probe;

/// The address of the node's end of a box's cable, as Calico gives to each: the node itself.
const NODE_OVER_IPV6: &str = "fe80::ecee:eeff:feee:eeee%eth0";

/// The `number`th address of the cluster's own network.
fn own(config: &Config, number: u32) -> Ipv4Addr {
    let IpAddr::V4(first) = config.cluster_cidrs[0].network() else {
        panic!("an IPv4 network");
    };
    Ipv4Addr::from(u32::from(first) + number)
}

/// This machine, as the cluster sees it.
fn machine(config: &Config) -> Ipv4Addr {
    own(config, 1)
}

fn node(config: &Config) -> Ipv4Addr {
    own(config, 2)
}

/// The Service of the API server.
fn api(config: &Config) -> Ipv4Addr {
    own(config, 1024 + 1)
}

fn internet() -> NetworkPolicy {
    NetworkPolicy {
        allow_internet: true,
        ..Default::default()
    }
}

fn cidrs(texts: &[&str]) -> NetworkPolicy {
    NetworkPolicy {
        allowed_egress_cidrs: texts.iter().map(|text| text.parse().unwrap()).collect(),
        ..Default::default()
    }
}

/// A policy that opens everything that a request can.
fn wide_open() -> NetworkPolicy {
    NetworkPolicy {
        allow_internet: true,
        allow_cluster_internal: true,
        ..cidrs(&["0.0.0.0/0", "::/0"])
    }
}
