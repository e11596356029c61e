//! The boxes' network on this machine: its subnet, its resolvers, its bridge.
//!
//! * I1. The subnet overlaps no route of the host, and no resolver.
//! * I2. Two instances that start together get different subnets: a subnet is chosen under a
//!   lock, and the bridge (whose route the next instance sees) exists before the lock is
//!   released.
//! * I3. Masquerading is one nftables table per instance, not a chain per box, so that one call
//!   removes it, also after a crash.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use agentbox_testing::tool::{Tool, ToolError};
use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::file_lock::{self, LockError};

/// The deadline for the lock: another instance holds it while it creates its bridge.
const LOCK_DEADLINE: Duration = Duration::from_secs(20);

/// The boxes' network cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("every /20 subnet of 10.160.0.0/11 overlaps a route of this machine")]
    NoSubnet,
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("cannot parse the output of `ip`: {0}")]
    Output(#[from] serde_json::Error),
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// The bridge's address: the first host of the subnet.
pub(crate) fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

/// The first /20 of 10.160.0.0/11 that overlaps no network in use. The search starts at a block
/// that follows from the seed, so that an instance mostly keeps its addresses.
fn choose(seed: u64, in_use: &[Ipv4Net]) -> Option<Ipv4Net> {
    const BLOCKS: u64 = 512;
    (0..BLOCKS)
        .filter_map(|step| {
            let block = u32::try_from((seed % BLOCKS + step) % BLOCKS).ok()?;
            let first = u32::from(Ipv4Addr::new(10, 160, 0, 0)) + (block << 12);
            Ipv4Net::new(Ipv4Addr::from(first), 20).ok()
        })
        .find(|candidate| !in_use.iter().any(|used| overlap(*used, *candidate)))
}

/// Two networks overlap when one contains the other.
fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// The destination of a route: a network or one address; `None` for `default`.
fn destination(route: &str) -> Option<Ipv4Net> {
    route
        .parse()
        .ok()
        .or_else(|| route.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
}

/// The name of the bridge's port to the node of a Kubernetes.
pub(crate) fn node_port(bridge: &str) -> String {
    format!("{bridge}n")
}

/// The bridge's name: at most 15 bytes, unique for the instance.
pub(crate) fn bridge_name(deployment: &str) -> String {
    let digest = Sha256::digest(deployment);
    format!("abx{}", hex::encode(&digest[..5]))
}

/// The nftables table that masquerades packets which leave the boxes' network.
fn table_name(deployment: &str) -> String {
    format!("agentbox-{deployment}-nat")
}

#[derive(Deserialize)]
struct Route {
    #[serde(default)]
    dst: String,
    #[serde(default)]
    dev: String,
}

async fn routes() -> Result<Vec<Route>, NetworkError> {
    let output = Tool::new("ip")
        .args(["-4", "-j", "route", "show", "table", "all"])
        .run()
        .await?;
    Ok(serde_json::from_str(&output)?)
}

/// Creates the bridge with its address and masquerading. Everything that a killed supervisor
/// left of the same instance must have been removed before ([`crate::cleanup`]).
pub(crate) async fn create(
    deployment: &str,
    lock_directory: &Path,
    resolvers: &[IpAddr],
) -> Result<Ipv4Net, NetworkError> {
    let _lock = file_lock::lock(&lock_directory.join("network.lock"), LOCK_DEADLINE).await?;
    let routes = routes().await?;
    let mut in_use: Vec<Ipv4Net> = routes.iter().filter_map(|r| destination(&r.dst)).collect();
    in_use.extend(resolvers.iter().filter_map(|resolver| match resolver {
        IpAddr::V4(address) => Some(Ipv4Net::from(*address)),
        IpAddr::V6(_) => None,
    }));
    let digest = Sha256::digest(deployment);
    let seed = digest
        .iter()
        .take(8)
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    let subnet = choose(seed, &in_use).ok_or(NetworkError::NoSubnet)?;
    let bridge = bridge_name(deployment);
    let address = format!("{}/{}", gateway(subnet), subnet.prefix_len());
    let mtu = default_mtu(&routes);
    // The address is explicit, because the bridge would otherwise take that of one of its ports.
    // `02` marks a locally administered unicast address.
    let [a, b, c, d, e, ..] = <[u8; 32]>::from(digest);
    let mac = format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}");
    ip(&[
        "link", "add", &bridge, "address", &mac, "mtu", &mtu, "type", "bridge",
    ])
    .await?;
    ip(&["addr", "add", &address, "dev", &bridge]).await?;
    ip(&["link", "set", &bridge, "up"]).await?;
    let table = table_name(deployment);
    let rules = format!(
        "table ip {table} {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
         ip saddr {subnet} ip daddr != {subnet} masquerade; }}; }}"
    );
    Tool::new("nft").args([rules]).run().await?;
    open_forwarding(deployment, &bridge).await?;
    Ok(subnet)
}

/// The MTU of the default route's device, because that of a tunnel is smaller than 1500.
fn default_mtu(routes: &[Route]) -> String {
    routes
        .iter()
        .find(|route| route.dst == "default")
        .and_then(|route| std::fs::read_to_string(format!("/sys/class/net/{}/mtu", route.dev)).ok())
        .map_or_else(|| "1500".to_owned(), |mtu| mtu.trim().to_owned())
}

async fn ip(arguments: &[&str]) -> Result<(), NetworkError> {
    Tool::new("ip").args(arguments).run().await?;
    Ok(())
}

/// iptables rules that accept the bridge's traffic, each with the deployment as its comment.
fn forward_rules(deployment: &str, bridge: &str) -> [Vec<String>; 2] {
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    [
        words(format!(
            "-i {bridge} -m comment --comment agentbox-{deployment} -j ACCEPT"
        )),
        words(format!(
            "-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED \
             -m comment --comment agentbox-{deployment} -j ACCEPT"
        )),
    ]
}

/// Accepts the boxes' forwarded packets where the default policy (of Docker or a firewall) drops
/// them. The boxes' network policy still applies: it is in other tables, and an accept in one
/// table does not end the evaluation of another.
async fn open_forwarding(deployment: &str, bridge: &str) -> Result<(), NetworkError> {
    let Ok(rules) = Tool::new("iptables")
        .args(["-w", "5", "-S", "FORWARD"])
        .run()
        .await
    else {
        return Ok(());
    };
    if !rules.lines().any(|line| line == "-P FORWARD DROP") {
        return Ok(());
    }
    for rule in forward_rules(deployment, bridge) {
        Tool::new("iptables")
            .args(["-w", "5", "-I", "FORWARD"])
            .args(rule)
            .run()
            .await?;
    }
    Ok(())
}

/// Removes the instance's bridge and all firewall tables with its name, including the driver's.
/// It ignores what does not exist.
pub(crate) async fn remove(deployment: &str) {
    let bridge = bridge_name(deployment);
    let _ = ip(&["link", "delete", &bridge]).await;
    // An open connection can keep the node's network namespace alive for minutes.
    let _ = ip(&["link", "delete", &node_port(&bridge)]).await;
    if let Ok(tables) = Tool::new("nft").args(["list", "tables"]).run().await {
        for (family, table) in own_tables(&tables, deployment) {
            let _ = Tool::new("nft")
                .args(["delete", "table", family, table])
                .run()
                .await;
        }
    }
    let rules = Tool::new("iptables")
        .args(["-w", "5", "-S", "FORWARD"])
        .run()
        .await;
    if rules.is_ok_and(|rules| rules.contains(&format!("agentbox-{deployment} "))) {
        for rule in forward_rules(deployment, &bridge) {
            let _ = Tool::new("iptables")
                .args(["-w", "5", "-D", "FORWARD"])
                .args(rule)
                .run()
                .await;
        }
    }
}

/// The tables in the output of `nft list tables` that are named `agentbox-<deployment>` or
/// `agentbox-<deployment>-…`.
fn own_tables<'a>(listed: &'a str, deployment: &str) -> Vec<(&'a str, &'a str)> {
    let name = format!("agentbox-{deployment}");
    listed
        .lines()
        .filter_map(|line| line.strip_prefix("table ")?.split_once(' '))
        .filter(|(_, table)| {
            table
                .strip_prefix(&name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
        .collect()
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    addr_info: Vec<InterfaceAddress>,
}

#[derive(Deserialize)]
struct InterfaceAddress {
    local: Option<String>,
}

/// Every address of this machine, which no box may reach.
pub(crate) async fn machine_addresses() -> Result<Vec<IpNet>, NetworkError> {
    let output = Tool::new("ip").args(["-j", "addr", "show"]).run().await?;
    parse_addresses(&output)
}

/// Reads the output of `ip -j addr show`. Leaves loopback and link-local addresses out: no network
/// policy opens one, on any machine.
fn parse_addresses(output: &str) -> Result<Vec<IpNet>, NetworkError> {
    let interfaces: Vec<Interface> = serde_json::from_str(output)?;
    let addresses = interfaces
        .into_iter()
        .flat_map(|interface| interface.addr_info);
    Ok(addresses
        .filter_map(|address| address.local?.parse::<IpAddr>().ok())
        .filter(|address| match address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        })
        .map(IpNet::from)
        .collect())
}

/// The resolvers that a box can reach: the host's, or those behind its local stub resolver.
pub(crate) fn resolvers() -> Vec<IpAddr> {
    for file in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        let found = nameservers(&std::fs::read_to_string(file).unwrap_or_default());
        if !found.is_empty() {
            return found;
        }
    }
    vec![
        IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
        IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    ]
}

/// IPv4 resolvers that are not on this host's loopback, which boxes do not share.
fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
        .filter(|address: &IpAddr| address.is_ipv4() && !address.is_loopback())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_subnet_overlaps_no_route() {
        let routes = ["10.160.0.0/16", "10.161.0.0/24", "default", "10.161.16.7"];
        let in_use: Vec<Ipv4Net> = routes.iter().filter_map(|r| destination(r)).collect();
        assert_eq!(choose(0, &in_use).unwrap().to_string(), "10.161.32.0/20");
        assert_eq!(choose(511, &[]).unwrap().to_string(), "10.191.240.0/20");
        assert_eq!(choose(0, &["10.0.0.0/8".parse().unwrap()]), None);
    }

    #[test]
    fn bridge_name_fits_the_kernels_limit_and_is_unique() {
        assert!(bridge_name("local-0123456789").len() <= 15);
        assert_ne!(bridge_name("test-1"), bridge_name("test-2"));
    }

    #[test]
    fn own_tables_excludes_other_deployments() {
        let listed = "table ip nat\ntable inet agentbox-t1\ntable ip agentbox-t1-nat\n\
                      table inet agentbox-t10\ntable bridge agentbox-t1-env-a\n";
        assert_eq!(
            own_tables(listed, "t1"),
            [
                ("inet", "agentbox-t1"),
                ("ip", "agentbox-t1-nat"),
                ("bridge", "agentbox-t1-env-a")
            ]
        );
    }

    #[test]
    fn machine_addresses_are_those_that_a_policy_could_open() {
        let output = r#"[{}, {"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},
            {"ifname":"eth0","addr_info":[{"family":"inet","local":"203.0.113.7","prefixlen":24},
            {"family":"inet6","local":"2001:db8::7","prefixlen":64},
            {"family":"inet6","local":"fe80::1","prefixlen":64}]}]"#;
        let addresses: Vec<String> = parse_addresses(output)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, ["203.0.113.7/32", "2001:db8::7/128"]);
    }

    #[test]
    fn loopback_resolver_is_not_given_to_boxes() {
        assert!(nameservers("nameserver 127.0.0.53\nnameserver ::1\n").is_empty());
        let found = nameservers("# x\nnameserver 192.0.2.53\noptions edns0\n");
        assert_eq!(found, ["192.0.2.53".parse::<IpAddr>().unwrap()]);
    }
}
