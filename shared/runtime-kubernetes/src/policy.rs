//! A box's network policy, in Kubernetes' words. Pure.
//!
//! * I1. Everything is denied that is not listed here, both ways.
//! * I2. No address of the cluster's own, none that the operator blocks, no link-local and no
//!   loopback address is ever in a list of what is open: it is cut out of any network that
//!   contains it.
//! * I3. No policy of a user's opens boxd's port.

use std::net::IpAddr;

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_runtime::{NEVER_V4, NEVER_V6, NetworkPolicy, PreflightError};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::Config;
use crate::labels;

const DNS: u16 = 53;

/// Not the public internet; an egress CIDR may open them.
const PRIVATE: [&str; 7] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "fc00::/7",
];

/// A box's network policy, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    internet: bool,
    egress: Vec<IpNet>,
    ingress_ports: Vec<u16>,
    boxes: bool,
}

impl Policy {
    /// Absent: the deployment's default.
    ///
    /// # Errors
    /// The first egress CIDR that is none, or ingress port that is not for users.
    pub fn read(
        asked: Option<&NetworkPolicy>,
        default_allow_internet: bool,
    ) -> Result<Self, PreflightError> {
        let Some(asked) = asked else {
            return Ok(Self {
                internet: default_allow_internet,
                egress: Vec::new(),
                ingress_ports: Vec::new(),
                boxes: false,
            });
        };
        let mut egress = Vec::new();
        for text in &asked.allowed_egress_cidrs {
            let parsed = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            match parsed {
                Ok(network) => egress.push(network.trunc()),
                Err(_) => {
                    let shown: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
                    return Err(PreflightError {
                        field: "isolation.network_policy.allowed_egress_cidrs",
                        message: format!("`{shown}` is not a CIDR"),
                    });
                }
            }
        }
        if let Some(port) = asked
            .allowed_ingress_ports
            .iter()
            .find(|port| matches!(**port, 0 | DEFAULT_PORT))
        {
            return Err(PreflightError {
                field: "isolation.network_policy.allowed_ingress_ports",
                message: format!("port {port} cannot be opened"),
            });
        }
        Ok(Self {
            internet: asked.allow_internet,
            egress: IpNet::aggregate(&egress),
            ingress_ports: asked.allowed_ingress_ports.clone(),
            boxes: asked.allow_cluster_internal,
        })
    }

    /// The `spec` of the NetworkPolicy.
    pub fn spec(&self, config: &Config) -> Value {
        json!({
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": self.ingress(config),
            "egress": self.egress(config),
        })
    }

    fn ingress(&self, config: &Config) -> Vec<Value> {
        let mut clients = vec![json!({ "namespaceSelector": { "matchLabels": {
            "kubernetes.io/metadata.name": config.system_namespace,
        }}})];
        clients.extend(
            config
                .boxd_client_cidrs
                .iter()
                .map(|cidr| json!({ "ipBlock": { "cidr": cidr.trunc() } })),
        );
        let mut rules = vec![json!({
            "from": clients,
            "ports": [{ "protocol": "TCP", "port": DEFAULT_PORT }],
        })];
        if !self.ingress_ports.is_empty() {
            let ports = self
                .ingress_ports
                .iter()
                .map(|port| json!({ "protocol": "TCP", "port": port }));
            rules.push(json!({ "ports": ports.collect::<Vec<_>>() }));
        }
        if self.boxes {
            rules.push(json!({ "from": [boxes(config)], "ports": all_but_boxd() }));
        }
        rules
    }

    fn egress(&self, config: &Config) -> Vec<Value> {
        let mut rules = Vec::new();
        let never: Vec<IpNet> = networks(&NEVER_V4)
            .chain(networks(&NEVER_V6))
            .chain(config.cluster_cidrs.iter().map(IpNet::trunc))
            .chain(config.blocked_egress_cidrs.iter().map(IpNet::trunc))
            .collect();
        let mut open = Vec::new();
        if self.internet {
            let closed: Vec<IpNet> = never.iter().copied().chain(networks(&PRIVATE)).collect();
            for whole in networks(&["0.0.0.0/0", "::/0"]) {
                open.extend(block(whole, &closed));
            }
        }
        let asked = self.egress.iter();
        open.extend(asked.filter_map(|network| block(*network, &never)));
        if !open.is_empty() {
            rules.push(json!({ "to": open }));
        }
        if self.internet || self.boxes {
            rules.push(json!({ "to": resolvers(config), "ports": [
                { "protocol": "UDP", "port": DNS }, { "protocol": "TCP", "port": DNS },
            ]}));
        }
        if self.boxes {
            rules.push(json!({ "to": [boxes(config)], "ports": all_but_boxd() }));
        }
        rules
    }
}

fn networks(texts: &'static [&'static str]) -> impl Iterator<Item = IpNet> {
    texts.iter().filter_map(|text| text.parse().ok())
}

/// A network less what is closed in it; `None` when nothing of it is left.
fn block(network: IpNet, closed: &[IpNet]) -> Option<Value> {
    if closed.iter().any(|closed| closed.contains(&network)) {
        return None;
    }
    let inside: Vec<IpNet> = closed
        .iter()
        .copied()
        .filter(|closed| network.contains(closed))
        // Kubernetes refuses to name these, and no packet has one: the kernel sends IPv4.
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

/// Every box of the deployment.
fn boxes(config: &Config) -> Value {
    json!({ "namespaceSelector": { "matchLabels": { labels::DEPLOYMENT: config.deployment } } })
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

/// A policy cannot name what is closed, so it names both sides of it.
fn all_but_boxd() -> Value {
    json!([
        { "protocol": "TCP", "port": 1, "endPort": DEFAULT_PORT - 1 },
        { "protocol": "TCP", "port": DEFAULT_PORT + 1, "endPort": 65_535 },
        { "protocol": "UDP", "port": 1, "endPort": 65_535 },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut json = crate::config::tests::minimal();
        json["boxd_client_cidrs"] = json!(["10.9.0.1/32"]);
        json["blocked_egress_cidrs"] = json!(["203.0.113.0/24"]);
        serde_json::from_value(json).unwrap()
    }

    fn spec(policy: &NetworkPolicy) -> Value {
        Policy::read(Some(policy), true).unwrap().spec(&config())
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
    fn an_empty_policy_opens_boxd_to_its_clients_and_nothing_else() {
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
    fn the_internet_is_what_is_neither_private_nor_the_clusters() {
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
    fn an_egress_cidr_never_opens_the_cluster_a_blocked_or_the_metadata_address() {
        let spec = spec(&NetworkPolicy {
            allowed_egress_cidrs: [
                "10.0.0.0/8",
                "10.244.3.0/24",
                "169.254.169.254",
                "192.168.8.1",
                "203.0.113.7",
            ]
            .map(str::to_owned)
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
    fn nobody_opens_boxds_port() {
        for port in [0, DEFAULT_PORT] {
            let policy = NetworkPolicy {
                allowed_ingress_ports: vec![port],
                ..Default::default()
            };
            assert!(Policy::read(Some(&policy), true).is_err(), "{port}");
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
