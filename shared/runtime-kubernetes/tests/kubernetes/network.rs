//! Network policies, tested by real traffic to targets that only a cluster has. The conformance
//! suite tests the other targets. Each closed target has a control: it answers a Pod without a
//! policy.

use std::net::{IpAddr, Ipv4Addr};

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime_kubernetes::Config;

mod bandwidth;
mod change;
mod closed;
mod destinations;
mod felix;
mod first_instruction;
pub mod hosts;
mod ingress;
mod names;
pub mod probe;

/// The address that Calico gives to the node's end of every box's veth pair. It reaches the node.
const NODE_OVER_IPV6: &str = "fe80::ecee:eeff:feee:eeee%eth0";

/// The address with this number in the first network of `cluster_cidrs`.
fn cluster_address(config: &Config, number: u32) -> Ipv4Addr {
    let IpAddr::V4(first) = config.cluster_cidrs[0].network() else {
        panic!("an IPv4 network");
    };
    Ipv4Addr::from(u32::from(first) + number)
}

/// The address of the machine of the tests in the cluster's network.
fn machine(config: &Config) -> Ipv4Addr {
    cluster_address(config, 1)
}

fn node(config: &Config) -> Ipv4Addr {
    cluster_address(config, 2)
}

/// The address of the API server's Service.
fn api(config: &Config) -> Ipv4Addr {
    cluster_address(config, 1024 + 1)
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
