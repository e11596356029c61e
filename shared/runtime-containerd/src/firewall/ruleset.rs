//! Renders the firewall's rules in nftables' language. Pure.
//!
//! A packet of a box passes these checks in order:
//!
//! 1. The guard of its bridge port: its own MAC and address, IPv4 and ARP only.
//! 2. To the machine: only replies and DNS queries to the resolvers pass.
//! 3. To another destination: a DNS query to a resolver passes, and an always denied range is
//!    refused. The box's chain `out-<id>` decides about the rest.
//! 4. To another box: that box's chain `in-<id>` decides too.
//!
//! The guard also bounds what a box sends. A packet that would begin a connection passes the chain
//! `opened` of its sender, and the chain `reached` of a receiving box: they bound the box's entries
//! in the machine's connection table. The chain `received` bounds what a box receives. The state of
//! a bound is an element of a dynamic set, for each port or address. The set's name has the bound,
//! because an element keeps the bound with which it was created.
//!
//! Only replies skip these checks. Other packets of a known connection do not, because connection
//! tracking may know it from an earlier box with the same address. The chain `replies` checks a reply
//! by the present policies of both ends, so that a changed policy ends open connections too: the
//! chains `out-re-<id>` and `in-re-<id>` mirror `out-<id>` and `in-<id>`.

mod elements;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::address_ranges::{ALWAYS_DENIED_V4, PRIVATE_V4};
use ipnet::{IpNet, Ipv4Net};

pub use elements::Elements;

use crate::config::Config;
use crate::network::BoxNetwork;

/// The IPv4 networks of an egress list, without overlaps. IPv6 networks open nothing, because boxes
/// have no IPv6.
fn egress_v4(policy: &NetworkPolicy) -> Vec<Ipv4Net> {
    let v4 = policy.allowed_egress_cidrs.iter().filter_map(ipv4_network);
    Ipv4Net::aggregate(&v4.collect())
}

fn ipv4_network(network: &IpNet) -> Option<Ipv4Net> {
    match network {
        IpNet::V4(network) => Some(network.trunc()),
        IpNet::V6(_) => None,
    }
}

/// The chains of one box, without the `-<id>` at their ends.
const CHAINS: [&str; 4] = ["out", "in", "out-re", "in-re"];

/// The maps from a box's address to its chains: the map, the chain, and how the chain is entered.
const MAPS: [(&str, &str, &str); 4] = [
    ("egress", "out", "goto"),
    ("ingress", "in", "goto"),
    ("answered", "out-re", "jump"),
    ("answering", "in-re", "jump"),
];

/// Whether the set has the state of the bound on connections, as elements that time removes.
fn is_state_of_a_bound(set: &str) -> bool {
    set.starts_with("opened-") || set.starts_with("connections-")
}

/// Renders the rules of one network.
#[derive(Clone, Debug)]
pub struct Ruleset {
    table: String,
    bridge: String,
    subnet: Ipv4Net,
    /// The name of the set with the addresses of this deployment's boxes.
    deployment_set: String,
    resolvers: Vec<Ipv4Addr>,
    blocked: Vec<Ipv4Net>,
    /// Bits per second of a box in each direction.
    bandwidth: Option<u64>,
    /// Open connections of a box.
    connections: Option<u64>,
}

/// The size of a dynamic set, larger than the number of boxes of any machine.
const SET_SIZE: u32 = 65_535;
/// A box opens as many connections at once as it may have open, and then as many again within this
/// time. A closed one stays in the table for two minutes, so that a box has at most about four times
/// its bound there.
const SECONDS_TO_OPEN_ALL: u64 = 64;
/// An ICMP refusal, so that a client in the box fails at once and not after minutes.
const REFUSE: &str = "reject with icmpx admin-prohibited";

/// Renders the rules in a box's own network namespace: packets leave by its gateway only. They apply
/// whatever rules exist already.
pub fn one_neighbour(gateway: Ipv4Addr) -> String {
    format!(
        r#"add table inet agentbox
add chain inet agentbox output {{ type filter hook output priority 0; policy drop; }}
flush chain inet agentbox output
add rule inet agentbox output oifname "lo" accept
add rule inet agentbox output rt ip nexthop {gateway} accept
"#
    )
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

impl Ruleset {
    pub fn new(config: &Config) -> Self {
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        Self {
            table: format!("agentbox-{}", config.network()),
            bridge: config.bridge.clone(),
            subnet: config.subnet.trunc(),
            deployment_set: format!("boxes-{}", config.deployment),
            resolvers: config.dns_servers.iter().filter_map(v4).collect(),
            blocked: config
                .blocked_egress_cidrs
                .iter()
                .filter_map(ipv4_network)
                .collect(),
            bandwidth: config.network_bandwidth,
            connections: config.network_connections,
        }
    }

    pub fn table(&self) -> &str {
        &self.table
    }

    pub const fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    pub fn deployment_set(&self) -> &str {
        &self.deployment_set
    }

    /// The set with the addresses of the boxes of one owner. A rule of each of them uses it.
    fn owner_set(&self, network: &BoxNetwork) -> Option<String> {
        let owner = network.owner.as_ref()?;
        Some(format!("{}-{owner}", self.deployment_set))
    }

    /// Renders the removal of the set of a box's owner.
    pub fn remove_owner_set(&self, network: &BoxNetwork) -> Option<String> {
        let set = self.owner_set(network)?;
        Some(format!("delete set inet {} {set}\n", self.table))
    }

    /// Renders the rules that bound the bandwidth of each box: bytes are counted at its port, and
    /// packets beyond the bound are dropped.
    fn bandwidth_rules(&self) -> String {
        let table = &self.table;
        let Some(bits) = self.bandwidth else {
            return String::new();
        };
        let mut text = String::new();
        for (chain, name, port) in [
            ("guard", "sent", "iifname"),
            ("received", "received", "oifname"),
        ] {
            let (set, bytes) = (format!("{name}-{bits}"), bits / 8);
            let _ = writeln!(
                text,
                "add set bridge {table} {set} {{ type ifname; size {SET_SIZE}; flags dynamic,timeout; timeout 1m; }}"
            );
            let _ = writeln!(
                text,
                "add rule bridge {table} {chain} {port} @ports update @{set} {{ {port} limit rate over {bytes} bytes/second }} drop"
            );
        }
        text
    }

    /// The sets with the state of the bound on connections: their names, and their definitions.
    fn connection_sets(&self) -> Option<[(String, String); 2]> {
        let connections = self.connections?;
        let set = format!("type ipv4_addr; size {SET_SIZE}; flags dynamic");
        Some([
            (
                format!("opened-{connections}"),
                format!("{{ {set},timeout; timeout 1m; }}"),
            ),
            // The kernel removes an element without connections. It refuses a timeout here.
            (
                format!("connections-{connections}"),
                format!("{{ {set}; }}"),
            ),
        ])
    }

    /// Renders the rules that bound the connections of each box. The first of a pair bounds how
    /// fast connections are opened: the kernel counts a refused one until it notices.
    fn connection_rules(&self) -> String {
        let table = &self.table;
        let (Some(connections), Some(sets)) = (self.connections, self.connection_sets()) else {
            return String::new();
        };
        let mut text = String::new();
        for (name, definition) in &sets {
            let _ = writeln!(text, "add set inet {table} {name} {definition}");
        }
        let [(opened, _), (open, _)] = &sets;
        let rate = (connections / SECONDS_TO_OPEN_ALL).max(1);
        for (chain, address, refusal) in [
            ("opened", "ip saddr", REFUSE),
            ("reached", "ip daddr", "drop"),
        ] {
            let rule = format!("add rule inet {table} {chain} ct status & confirmed == 0");
            let _ = writeln!(
                text,
                "{rule} update @{opened} {{ {address} limit rate over {rate}/second burst {connections} packets }} {refusal}"
            );
            let _ = writeln!(
                text,
                "{rule} add @{open} {{ {address} ct count over {connections} }} {refusal}"
            );
        }
        text
    }

    /// Renders the rules that belong to no box. They apply whatever rules exist already.
    fn base(&self) -> String {
        let Self {
            table,
            bridge,
            subnet,
            deployment_set,
            ..
        } = self;
        let bandwidth = self.bandwidth_rules();
        let connections = self.connection_rules();
        // A redirect would lead the box's packets to a neighbour, and there its own rules refuse them.
        // The machine sends them whatever the bridge's setting is, if that of all interfaces permits it.
        let no_redirects = "oifname @ports icmp type redirect drop";
        let denied = ALWAYS_DENIED_V4.join(", ");
        let private = PRIVATE_V4.join(", ");
        let dns = "ip saddr . ip daddr @resolving meta l4proto { tcp, udp } th dport 53";
        let dns_reply = "ip daddr . ip saddr @resolving meta l4proto { tcp, udp } th sport 53";
        format!(
            r#"add table bridge {table}
add set bridge {table} ports {{ type ifname; }}
add set bridge {table} senders {{ type ifname . ether_addr . ipv4_addr; }}
add chain bridge {table} guard {{ type filter hook prerouting priority -300; policy accept; }}
add chain bridge {table} between {{ type filter hook forward priority 0; policy accept; }}
add chain bridge {table} received {{ type filter hook postrouting priority 0; policy accept; }}
flush chain bridge {table} guard
flush chain bridge {table} between
flush chain bridge {table} received
{bandwidth}add rule bridge {table} guard iifname != @ports accept
add rule bridge {table} guard ether type ip iifname . ether saddr . ip saddr @senders accept
add rule bridge {table} guard ether type arp iifname . ether saddr . arp saddr ip @senders iifname . arp saddr ether . arp saddr ip @senders accept
add rule bridge {table} guard drop
add rule bridge {table} received {no_redirects}
add rule bridge {table} between iifname @ports drop
add rule bridge {table} between oifname @ports drop
add table inet {table}
add map inet {table} egress {{ type ipv4_addr : verdict; }}
add map inet {table} ingress {{ type ipv4_addr : verdict; }}
add map inet {table} answered {{ type ipv4_addr : verdict; }}
add map inet {table} answering {{ type ipv4_addr : verdict; }}
add set inet {table} resolving {{ type ipv4_addr . ipv4_addr; }}
add set inet {table} {deployment_set} {{ type ipv4_addr; }}
add chain inet {table} opened
add chain inet {table} reached
add chain inet {table} delivered
add chain inet {table} internet
add chain inet {table} replies
add chain inet {table} input {{ type filter hook input priority 0; policy accept; }}
add chain inet {table} forward {{ type filter hook forward priority 0; policy accept; }}
flush chain inet {table} opened
flush chain inet {table} reached
flush chain inet {table} delivered
flush chain inet {table} internet
flush chain inet {table} replies
flush chain inet {table} input
flush chain inet {table} forward
{connections}add rule inet {table} reached accept
add rule inet {table} input iifname != "{bridge}" accept
add rule inet {table} input ct state established,related ct direction reply accept
add rule inet {table} input {dns} jump opened
add rule inet {table} input {dns} accept
add rule inet {table} input {REFUSE}
add rule inet {table} forward iifname != "{bridge}" oifname != "{bridge}" accept
add rule inet {table} forward ct state established ct direction reply goto replies
add rule inet {table} forward ct state related ct direction reply accept
add rule inet {table} forward ct state invalid drop
add rule inet {table} forward iifname != "{bridge}" goto delivered
add rule inet {table} forward {dns} jump opened
add rule inet {table} forward {dns} accept
add rule inet {table} forward ip daddr {{ {denied} }} {REFUSE}
add rule inet {table} forward ip saddr vmap @egress
add rule inet {table} forward {REFUSE}
add rule inet {table} delivered iifname "{bridge}" jump opened
add rule inet {table} delivered oifname != "{bridge}" accept
add rule inet {table} delivered tcp dport {DEFAULT_PORT} drop
add rule inet {table} delivered ip daddr vmap @ingress
add rule inet {table} delivered drop
add rule inet {table} replies {dns_reply} accept
add rule inet {table} replies ip daddr vmap @answered
add rule inet {table} replies ip saddr vmap @answering
add rule inet {table} replies accept
add rule inet {table} internet ip daddr {{ {private} }} return
add rule inet {table} internet ip daddr {subnet} return
add rule inet {table} internet meta nfproto ipv4 goto delivered
"#
        )
    }

    /// Renders the rules that belong to no box, and all rules of one box. They apply whatever rules
    /// exist already.
    pub fn install(
        &self,
        id: &EnvironmentId,
        network: &BoxNetwork,
        policy: &NetworkPolicy,
    ) -> String {
        let mut text = self.base();
        text.push_str(&self.rules_of_box(id, network, policy));
        text
    }

    /// Renders all rules of one box, for tables that have the others.
    pub fn rules_of_box(
        &self,
        id: &EnvironmentId,
        network: &BoxNetwork,
        policy: &NetworkPolicy,
    ) -> String {
        let Self {
            table,
            bridge,
            subnet,
            deployment_set,
            ..
        } = self;
        let BoxNetwork {
            address, mac, port, ..
        } = network;
        let egress = egress_v4(policy);
        let mut text = String::new();
        let mut line = |rule: String| {
            text.push_str(&rule);
            text.push('\n');
        };
        for chain in CHAINS {
            line(format!("add chain inet {table} {chain}-{id}"));
            line(format!("flush chain inet {table} {chain}-{id}"));
        }
        let owner_set = self.owner_set(network);
        if let Some(set) = &owner_set {
            line(format!("add set inet {table} {set} {{ type ipv4_addr; }}"));
            // Not even an opened port is open to a box of another owner.
            line(format!(
                "add rule inet {table} in-{id} iifname \"{bridge}\" ip saddr != @{set} drop"
            ));
            line(format!(
                "add rule inet {table} in-re-{id} oifname \"{bridge}\" ip daddr != @{set} drop"
            ));
            line(format!("add element inet {table} {set} {{ {address} }}"));
        }
        if let Some(set) = owner_set.filter(|_| policy.allow_cluster_internal) {
            line(format!(
                "add rule inet {table} out-{id} ip daddr @{set} goto delivered"
            ));
            line(format!(
                "add rule inet {table} in-{id} iifname \"{bridge}\" ip saddr @{set} goto reached"
            ));
            line(format!(
                "add rule inet {table} out-re-{id} ip saddr @{set} return"
            ));
            line(format!(
                "add rule inet {table} in-re-{id} oifname \"{bridge}\" ip daddr @{set} return"
            ));
        }
        // An egress CIDR that contains the boxes' network opens no box.
        line(format!(
            "add rule inet {table} out-{id} ip daddr {subnet} {REFUSE}"
        ));
        line(format!(
            "add rule inet {table} out-re-{id} ip saddr {subnet} drop"
        ));
        // No egress CIDR opens the operator's blocked networks.
        if !self.blocked.is_empty() && (policy.allow_internet || !egress.is_empty()) {
            let blocked = list(&self.blocked);
            line(format!(
                "add rule inet {table} out-{id} ip daddr {{ {blocked} }} {REFUSE}"
            ));
            line(format!(
                "add rule inet {table} out-re-{id} ip saddr {{ {blocked} }} drop"
            ));
        }
        if !egress.is_empty() {
            let networks = list(&egress);
            line(format!(
                "add rule inet {table} out-{id} ip daddr {{ {networks} }} goto delivered"
            ));
            line(format!(
                "add rule inet {table} out-re-{id} ip saddr {{ {networks} }} return"
            ));
        }
        if policy.allow_internet {
            line(format!("add rule inet {table} out-{id} jump internet"));
            let private = PRIVATE_V4.join(", ");
            line(format!(
                "add rule inet {table} out-re-{id} ip saddr != {{ {private} }} return"
            ));
        }
        line(format!("add rule inet {table} out-{id} {REFUSE}"));
        line(format!("add rule inet {table} out-re-{id} drop"));
        if !policy.allowed_ingress_ports.is_empty() {
            let ports = list(&policy.allowed_ingress_ports);
            line(format!(
                "add rule inet {table} in-{id} tcp dport {{ {ports} }} goto reached"
            ));
            line(format!(
                "add rule inet {table} in-re-{id} tcp sport {{ {ports} }} return"
            ));
        }
        line(format!("add rule inet {table} in-{id} drop"));
        line(format!("add rule inet {table} in-re-{id} drop"));
        for (map, chain, verdict) in MAPS {
            line(format!(
                "add element inet {table} {map} {{ {address} : {verdict} {chain}-{id} }}"
            ));
        }
        line(format!(
            "add element inet {table} {deployment_set} {{ {address} }}"
        ));
        for resolver in &self.resolvers {
            let pair = format!("{address} . {resolver}");
            line(format!("add element inet {table} resolving {{ {pair} }}"));
            // The policy before may have had it.
            if !policy.allow_internet {
                line(format!(
                    "delete element inet {table} resolving {{ {pair} }}"
                ));
            }
        }
        line(format!(
            "add element bridge {table} senders {{ \"{port}\" . {mac} . {address} }}"
        ));
        line(format!("add element bridge {table} ports {{ \"{port}\" }}"));
        text
    }

    /// Renders the removal of one box's rules. Each element is added first, so that a missing one
    /// is not an error.
    pub fn remove(&self, id: &EnvironmentId, network: &BoxNetwork) -> String {
        let Self {
            table,
            deployment_set,
            ..
        } = self;
        let BoxNetwork {
            address, mac, port, ..
        } = network;
        let mut text = String::new();
        let mut elements = Vec::new();
        for (map, chain, verdict) in MAPS {
            // A table of an older version does not have all of them.
            let _ = writeln!(
                text,
                "add map inet {table} {map} {{ type ipv4_addr : verdict; }}"
            );
            elements.push((
                "inet",
                map.to_owned(),
                address.to_string(),
                format!("{address} : {verdict} {chain}-{id}"),
            ));
        }
        elements.push((
            "inet",
            deployment_set.clone(),
            address.to_string(),
            address.to_string(),
        ));
        if let Some(set) = self.owner_set(network) {
            let _ = writeln!(text, "add set inet {table} {set} {{ type ipv4_addr; }}");
            elements.push(("inet", set, address.to_string(), address.to_string()));
        }
        for (set, definition) in self.connection_sets().into_iter().flatten() {
            let _ = writeln!(text, "add set inet {table} {set} {definition}");
            elements.push(("inet", set, address.to_string(), address.to_string()));
        }
        for resolver in &self.resolvers {
            let pair = format!("{address} . {resolver}");
            elements.push(("inet", "resolving".to_owned(), pair.clone(), pair));
        }
        let sender = format!("\"{port}\" . {mac} . {address}");
        elements.push(("bridge", "senders".to_owned(), sender.clone(), sender));
        let port = format!("\"{port}\"");
        elements.push(("bridge", "ports".to_owned(), port.clone(), port));
        for chain in CHAINS {
            let _ = writeln!(text, "add chain inet {table} {chain}-{id}");
        }
        for (family, set, key, element) in elements {
            let _ = writeln!(text, "add element {family} {table} {set} {{ {element} }}");
            let _ = writeln!(text, "delete element {family} {table} {set} {{ {key} }}");
        }
        self.delete_chains(id, &mut text);
        text
    }

    fn delete_chains(&self, id: &EnvironmentId, text: &mut String) {
        let table = &self.table;
        for chain in CHAINS {
            let _ = writeln!(text, "add chain inet {table} {chain}-{id}");
            let _ = writeln!(text, "flush chain inet {table} {chain}-{id}");
            let _ = writeln!(text, "delete chain inet {table} {chain}-{id}");
        }
    }

    /// Renders the removal of a box's listed elements; `None` when there are none.
    pub fn remove_listed(&self, id: &EnvironmentId, found: &Elements) -> Option<String> {
        let table = &self.table;
        let mut text = String::new();
        for (address, holder) in &found.egress {
            if holder != id {
                continue;
            }
            let _ = writeln!(text, "delete element inet {table} egress {{ {address} }}");
            for (name, key) in &found.others {
                if key.first() != Some(&address.to_string())
                    && key.get(2) != Some(&address.to_string())
                {
                    continue;
                }
                let (family, key) = match name.as_str() {
                    "senders" => {
                        if let Some(port) = key.first() {
                            let _ = writeln!(
                                text,
                                "delete element bridge {table} ports {{ \"{port}\" }}"
                            );
                        }
                        let mut quoted = key.clone();
                        if let Some(port) = quoted.first_mut() {
                            *port = format!("\"{port}\"");
                        }
                        ("bridge", quoted)
                    }
                    _ => ("inet", key.clone()),
                };
                let key = key.join(" . ");
                if is_state_of_a_bound(name) {
                    // The kernel may have removed it meanwhile.
                    let _ = writeln!(text, "add element {family} {table} {name} {{ {key} }}");
                }
                let _ = writeln!(text, "delete element {family} {table} {name} {{ {key} }}");
            }
        }
        let of_box = CHAINS.map(|chain| format!("{chain}-{id}"));
        if found.chains.iter().any(|chain| of_box.contains(chain)) {
            self.delete_chains(id, &mut text);
        }
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests;
