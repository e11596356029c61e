//! Renders a box's network policy as a Kubernetes NetworkPolicy. Pure.
//!
//! * I1. The object denies everything that it does not list, both ways.
//! * I2. It never opens an address of the cluster, of a node, of `blocked_egress_cidrs`, link-local
//!   or loopback: every listed network excludes these.
//! * I3. No user's policy opens boxd's port.
//! * I4. No policy opens a box of another owner.

use std::net::IpAddr;

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_contracts::ids::UserId;
use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::address_ranges::{
    ALWAYS_DENIED_V4, ALWAYS_DENIED_V6, EVERYWHERE, PRIVATE_V4, PRIVATE_V6, networks,
};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::Config;
use crate::labels;

const DNS: u16 = 53;

/// The `spec` of the NetworkPolicy. Without an `owner` no other box is opened. `nodes` are the
/// addresses of nodes that the configuration does not list.
pub fn spec(
    policy: &NetworkPolicy,
    owner: Option<&UserId>,
    config: &Config,
    nodes: &[IpNet],
) -> Value {
    let boxes = owner
        .filter(|_| policy.allow_cluster_internal)
        .map(|owner| boxes_of(owner, config));
    json!({
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress(policy, boxes.as_ref(), config),
        "egress": egress(policy, boxes.as_ref(), config, nodes),
    })
}

/// The ingress rule that opens a TCP port to our services.
pub fn open_to_services(config: &Config, port: u16) -> Value {
    let mut clients = vec![json!({ "namespaceSelector": { "matchLabels": {
        "kubernetes.io/metadata.name": config.system_namespace,
    }}})];
    clients.extend(
        config
            .boxd_client_cidrs
            .iter()
            .map(|cidr| json!({ "ipBlock": { "cidr": cidr.trunc() } })),
    );
    json!({
        "from": clients,
        "ports": [{ "protocol": "TCP", "port": port }],
    })
}

/// `boxes` are the other boxes that the policy opens.
fn ingress(policy: &NetworkPolicy, boxes: Option<&Value>, config: &Config) -> Vec<Value> {
    let mut rules = vec![open_to_services(config, DEFAULT_PORT)];
    if !policy.allowed_ingress_ports.is_empty() {
        let ports = policy
            .allowed_ingress_ports
            .iter()
            .map(|port| json!({ "protocol": "TCP", "port": port }));
        rules.push(json!({ "ports": ports.collect::<Vec<_>>() }));
    }
    if let Some(boxes) = boxes {
        rules.push(json!({ "from": [boxes], "ports": all_but_boxd() }));
    }
    rules
}

fn egress(
    policy: &NetworkPolicy,
    boxes: Option<&Value>,
    config: &Config,
    nodes: &[IpNet],
) -> Vec<Value> {
    let mut rules = Vec::new();
    let denied: Vec<IpNet> = networks(&ALWAYS_DENIED_V4)
        .chain(networks(&ALWAYS_DENIED_V6))
        .chain(config.cluster_cidrs.iter().map(IpNet::trunc))
        .chain(config.blocked_egress_cidrs.iter().map(IpNet::trunc))
        .chain(nodes.iter().copied())
        .collect();
    let mut open = Vec::new();
    if policy.allow_internet {
        let private = networks(&PRIVATE_V4).chain(networks(&PRIVATE_V6));
        let closed: Vec<IpNet> = denied.iter().copied().chain(private).collect();
        for network in networks(&EVERYWHERE) {
            open.extend(block(network, &closed));
        }
    }
    let requested = IpNet::aggregate(&policy.allowed_egress_cidrs);
    open.extend(
        requested
            .iter()
            .filter_map(|network| block(*network, &denied)),
    );
    if !open.is_empty() {
        rules.push(json!({ "to": open }));
    }
    if policy.allow_internet {
        rules.push(json!({ "to": resolvers(config), "ports": [
            { "protocol": "UDP", "port": DNS }, { "protocol": "TCP", "port": DNS },
        ]}));
    }
    if let Some(boxes) = boxes {
        rules.push(json!({ "to": [boxes], "ports": all_but_boxd() }));
    }
    rules
}

/// The `ipBlock` of a network without `closed`; `None` when nothing remains.
fn block(network: IpNet, closed: &[IpNet]) -> Option<Value> {
    if closed.iter().any(|closed| closed.contains(&network)) {
        return None;
    }
    let inside: Vec<IpNet> = closed
        .iter()
        .copied()
        .filter(|closed| network.contains(closed))
        // Kubernetes rejects IPv4-mapped networks, and the kernel sends such packets as IPv4.
        .filter(|closed| !is_ipv4_mapped(closed))
        .collect();
    let except = IpNet::aggregate(&inside);
    Some(if except.is_empty() {
        json!({ "ipBlock": { "cidr": network } })
    } else {
        json!({ "ipBlock": { "cidr": network, "except": except } })
    })
}

fn is_ipv4_mapped(network: &IpNet) -> bool {
    matches!(network.addr(), IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Every box of one owner. Only the driver sets labels of namespaces and Pods.
fn boxes_of(owner: &UserId, config: &Config) -> Value {
    json!({
        "namespaceSelector": { "matchLabels": { labels::DEPLOYMENT: config.deployment } },
        "podSelector": { "matchLabels": { labels::OWNER: owner } },
    })
}

fn resolvers(config: &Config) -> Vec<Value> {
    if config.dns_servers.is_empty() {
        return vec![json!({ "namespaceSelector": { "matchLabels": {
            "kubernetes.io/metadata.name": "kube-system",
        }}})];
    }
    config
        .dns_servers
        .iter()
        .map(|server| json!({ "ipBlock": { "cidr": IpNet::from(*server) } }))
        .collect()
}

/// Every port except boxd's: a policy cannot exclude a port, so this lists the ranges around it.
fn all_but_boxd() -> Value {
    json!([
        { "protocol": "TCP", "port": 1, "endPort": DEFAULT_PORT - 1 },
        { "protocol": "TCP", "port": DEFAULT_PORT + 1, "endPort": 65_535 },
        { "protocol": "UDP", "port": 1, "endPort": 65_535 },
    ])
}

#[cfg(test)]
mod tests {
    use agentbox_runtime::IngressPort;

    use super::*;

    const OWNER: &str = "user-0123456789abcdef";

    fn config() -> Config {
        let mut json = crate::config::tests::minimal();
        json["boxd_client_cidrs"] = json!(["10.9.0.1/32"]);
        json["blocked_egress_cidrs"] = json!(["203.0.113.0/24"]);
        serde_json::from_value(json).unwrap()
    }

    fn spec(policy: &NetworkPolicy) -> Value {
        let owner: UserId = OWNER.parse().unwrap();
        super::spec(policy, Some(&owner), &config(), &[])
    }

    fn excepts(rule: &Value, cidr: &str) -> Vec<String> {
        let blocks = rule["to"].as_array().unwrap();
        let block = blocks
            .iter()
            .find(|b| b["ipBlock"]["cidr"] == cidr)
            .unwrap();
        let except = block["ipBlock"]["except"].as_array().cloned();
        except
            .unwrap_or_default()
            .iter()
            .map(|net| net.as_str().unwrap().to_owned())
            .collect()
    }

    fn is_within(address: &str, networks: &[String]) -> bool {
        let address: IpAddr = address.parse().unwrap();
        networks
            .iter()
            .any(|net| net.parse::<IpNet>().unwrap().contains(&address))
    }

    #[test]
    fn empty_policy_opens_only_boxd_to_its_clients() {
        let spec = spec(&NetworkPolicy::default());
        assert_eq!(spec["egress"], json!([]));
        let ingress = spec["ingress"].as_array().unwrap();
        assert_eq!(ingress.len(), 1);
        assert_eq!(
            ingress[0]["ports"],
            json!([{ "protocol": "TCP", "port": DEFAULT_PORT }])
        );
        assert_eq!(ingress[0]["from"][1]["ipBlock"]["cidr"], "10.9.0.1/32");
    }

    #[test]
    fn only_boxes_of_the_same_owner_are_opened() {
        let policy = NetworkPolicy {
            allow_cluster_internal: true,
            ..Default::default()
        };
        let boxes = json!([{
            "namespaceSelector": { "matchLabels": { "agentbox.dev/deployment": "eu-1" } },
            "podSelector": { "matchLabels": { "agentbox.dev/owner": OWNER } },
        }]);
        let opened = spec(&policy);
        assert_eq!(opened["ingress"][1]["from"], boxes);
        assert_eq!(opened["egress"][0]["to"], boxes);
        let unknown = super::spec(&policy, None, &config(), &[]);
        assert_eq!(unknown["ingress"].as_array().unwrap().len(), 1);
        assert_eq!(unknown["egress"], json!([]));
    }

    #[test]
    fn resolvers_are_open_with_internet_access_only() {
        for (allow_internet, allow_cluster_internal) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let spec = spec(&NetworkPolicy {
                allow_internet,
                allow_cluster_internal,
                ..Default::default()
            });
            let rules = spec["egress"].as_array().unwrap();
            let opens_dns = rules.iter().any(|rule| rule["ports"][0]["port"] == DNS);
            assert_eq!(opens_dns, allow_internet, "{spec}");
        }
    }

    #[test]
    fn internet_excludes_private_and_cluster_networks() {
        let spec = spec(&NetworkPolicy {
            allow_internet: true,
            ..Default::default()
        });
        let rule = &spec["egress"][0];
        let except = excepts(rule, "0.0.0.0/0");
        for closed in [
            "10.244.1.1",
            "192.168.7.9",
            "172.16.0.1",
            "169.254.169.254",
            "127.0.0.1",
            "100.64.0.1",
            "239.0.0.1",
            "255.255.255.255",
        ] {
            assert!(is_within(closed, &except), "{closed}");
        }
        for open in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1"] {
            assert!(!is_within(open, &except), "{open}");
        }
        let except = excepts(rule, "::/0");
        assert!(
            !except.iter().any(|net| net.contains("ffff:")),
            "{except:?}"
        );
        assert!(is_within("fe80::1", &except) && is_within("fd00::1", &except));
        assert!(!is_within("2606:4700::1", &except));
    }

    #[test]
    fn egress_cidr_never_opens_cluster_blocked_or_metadata_address() {
        let spec = spec(&NetworkPolicy {
            allowed_egress_cidrs: [
                "10.0.0.0/8",
                "10.244.3.0/24",
                "169.254.169.254/32",
                "192.168.8.1/32",
                "203.0.113.7/32",
            ]
            .map(|cidr| cidr.parse().unwrap())
            .to_vec(),
            ..Default::default()
        });
        let to = spec["egress"][0]["to"].as_array().unwrap();
        let cidrs: Vec<_> = to.iter().map(|b| b["ipBlock"]["cidr"].clone()).collect();
        assert_eq!(cidrs, ["10.0.0.0/8", "192.168.8.1/32"]);
        let except = excepts(&spec["egress"][0], "10.0.0.0/8");
        assert!(is_within("10.244.3.1", &except) && is_within("10.96.0.1", &except));
        assert!(!is_within("10.1.0.1", &except));
    }

    #[test]
    fn unlisted_node_is_closed_under_every_policy() {
        let node: IpNet = "198.51.100.8/32".parse().unwrap();
        let listed: IpNet = "198.51.100.0/24".parse().unwrap();
        let spec = super::spec(
            &NetworkPolicy {
                allow_internet: true,
                allowed_egress_cidrs: vec![node, listed],
                ..Default::default()
            },
            None,
            &config(),
            &[node],
        );
        for cidr in ["0.0.0.0/0", "198.51.100.0/24"] {
            let except = excepts(&spec["egress"][0], cidr);
            assert!(is_within("198.51.100.8", &except), "{cidr}: {except:?}");
            assert!(!is_within("198.51.100.9", &except), "{cidr}: {except:?}");
        }
    }

    #[test]
    fn boxd_port_is_closed_under_every_policy() {
        for port in [0, DEFAULT_PORT] {
            assert!(IngressPort::try_from(port).is_err(), "{port}");
        }
        let internal = spec(&NetworkPolicy {
            allow_cluster_internal: true,
            ..Default::default()
        });
        for direction in ["ingress", "egress"] {
            let rules = internal[direction].as_array().unwrap();
            let ports = rules.last().unwrap()["ports"].as_array().unwrap();
            let opens = ports.iter().any(|range| {
                let bound = |name: &str| range[name].as_u64().unwrap();
                range["protocol"] == "TCP"
                    && (bound("port")..=bound("endPort")).contains(&u64::from(DEFAULT_PORT))
            });
            assert!(!opens, "{direction}");
        }
    }
}
