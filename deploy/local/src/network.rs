//! The boxes' network on this machine: which addresses, which resolvers, the bridge.
//!
//! * I1. The subnet overlaps no route of the host, and no resolver.
//! * I2. Two instances that start together get different subnets: choosing happens under
//!   a lock, and the bridge (whose route is seen by the next chooser) exists before the
//!   lock is released.
//! * I3. Masquerading is one nftables table per instance, not a chain per box: removing
//!   it is one call, after a crash too.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::tool::{Tool, ToolError};

/// The boxes' network cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("every 10.160.0.0/11 subnet overlaps a route of this machine")]
    NoSubnet,
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("cannot read what `ip` says: {0}")]
    Output(#[from] serde_json::Error),
    #[error("cannot take the network lock: {0}")]
    Lock(std::io::Error),
}

/// An IPv4 network in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet {
    first: u32,
    length: u8,
}

impl Subnet {
    fn new(address: Ipv4Addr, length: u8) -> Self {
        let first = u32::from(address) & mask(length);
        Self { first, length }
    }

    fn overlaps(self, other: Self) -> bool {
        let shorter = mask(self.length.min(other.length));
        self.first & shorter == other.first & shorter
    }

    /// The bridge's own address: the first host.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        self.host(1)
    }

    pub(crate) fn host(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first + number)
    }

    pub(crate) const fn length(self) -> u8 {
        self.length
    }

    /// Its `number`th part of this length, counted from 0.
    pub(crate) fn part(self, length: u8, number: u32) -> Self {
        let first = self.first + (number << (32 - u32::from(length)));
        Self { first, length }
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.length)
    }
}

impl From<Subnet> for ipnet::IpNet {
    fn from(subnet: Subnet) -> Self {
        ipnet::Ipv4Net::new_assert(subnet.host(0), subnet.length).into()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl FromStr for Subnet {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let parse = || {
            Some((
                address.parse().ok()?,
                length.parse().ok().filter(|l| *l <= 32)?,
            ))
        };
        let (address, length): (Ipv4Addr, u8) =
            parse().ok_or_else(|| format!("`{text}` is not an IPv4 network"))?;
        Ok(Self::new(address, length))
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The first /20 of 10.160.0.0/11 that overlaps nothing in use, beginning at a place of
/// the instance's own so that its addresses rarely change.
fn choose(seed: u64, in_use: &[Subnet]) -> Option<Subnet> {
    const BLOCKS: u64 = 512;
    (0..BLOCKS)
        .map(|step| {
            let block = u32::try_from((seed % BLOCKS + step) % BLOCKS).unwrap_or(0);
            let first = u32::from(Ipv4Addr::new(10, 160, 0, 0)) + (block << 12);
            Subnet::new(Ipv4Addr::from(first), 20)
        })
        .find(|candidate| !in_use.iter().any(|used| used.overlaps(*candidate)))
}

/// The bridge's port to a Kubernetes' node.
pub(crate) fn node_port(bridge: &str) -> String {
    format!("{bridge}n")
}

/// The bridge's name: 15 bytes at most, unique for the instance.
pub(crate) fn bridge_name(deployment: &str) -> String {
    let digest = Sha256::digest(deployment);
    format!("abx{}", hex::encode(&digest[..5]))
}

/// The table that masquerades what leaves the boxes' network.
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
    let said = Tool::new("ip")
        .args(["-4", "-j", "route", "show", "table", "all"])
        .run()
        .await?;
    Ok(serde_json::from_str(&said)?)
}

/// Makes the bridge with its address and masquerading. What a crashed run left of the
/// same instance has been removed before.
pub(crate) async fn create(
    deployment: &str,
    lock_directory: &Path,
    resolvers: &[IpAddr],
) -> Result<Subnet, NetworkError> {
    let _lock = lock(lock_directory.join("network.lock")).await?;
    let routes = routes().await?;
    let mut in_use: Vec<Subnet> = routes.iter().filter_map(|r| r.dst.parse().ok()).collect();
    in_use.extend(resolvers.iter().filter_map(|resolver| match resolver {
        IpAddr::V4(address) => Some(Subnet::new(*address, 32)),
        IpAddr::V6(_) => None,
    }));
    let digest = Sha256::digest(deployment);
    let seed = digest
        .iter()
        .take(8)
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    let subnet = choose(seed, &in_use).ok_or(NetworkError::NoSubnet)?;
    let bridge = bridge_name(deployment);
    let address = format!("{}/{}", subnet.gateway(), subnet.length);
    // A tunnel's smaller packets must fit: the boxes use the default route's size.
    let mtu = routes
        .iter()
        .find(|route| route.dst == "default")
        .and_then(|route| std::fs::read_to_string(format!("/sys/class/net/{}/mtu", route.dev)).ok())
        .map_or_else(|| "1500".to_owned(), |mtu| mtu.trim().to_owned());
    // One that it was given stays when ports come and go; `02`: a single host's, local.
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

async fn ip(arguments: &[&str]) -> Result<(), NetworkError> {
    Tool::new("ip").args(arguments).run().await?;
    Ok(())
}

async fn lock(path: std::path::PathBuf) -> Result<File, NetworkError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(NetworkError::Lock)?;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while let Err(error) = file.try_lock() {
        if tokio::time::Instant::now() > deadline {
            return Err(NetworkError::Lock(error.into()));
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(file)
}

/// Rules that accept our bridge's traffic, each with our comment.
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

/// Where something (Docker, a firewall) drops forwarded packets by default, the boxes'
/// packets are let through. The boxes' own network policy is in other tables and still
/// holds: an accept in one table is no accept in another.
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

/// Removes the instance's bridge and every firewall table that carries its name, the
/// driver's too. What is not there is not an error.
pub(crate) async fn remove(deployment: &str) {
    let bridge = bridge_name(deployment);
    let _ = ip(&["link", "delete", &bridge]).await;
    // The node's network may outlive it for minutes, held by a connection that nobody ends.
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

/// From `nft list tables`: those named `agentbox-<deployment>` or `agentbox-<deployment>-…`.
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

/// The resolvers that a box can reach: the host's real ones, behind a local stub too.
#[must_use]
pub fn resolvers() -> Vec<IpAddr> {
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

/// IPv4 resolvers that are not this host's loopback, which is another one in a box.
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
    fn the_chosen_subnet_overlaps_no_route() {
        let routes = ["10.160.0.0/16", "10.161.0.0/24", "default", "10.161.16.7"];
        let in_use: Vec<Subnet> = routes.iter().filter_map(|r| r.parse().ok()).collect();
        assert_eq!(choose(0, &in_use).unwrap().to_string(), "10.161.32.0/20");
        assert_eq!(choose(511, &[]).unwrap().to_string(), "10.191.240.0/20");
        assert_eq!(choose(0, &["10.0.0.0/8".parse().unwrap()]), None);
    }

    #[test]
    fn a_bridge_name_fits_the_kernels_limit_and_is_the_instances_own() {
        assert!(bridge_name("local-0123456789").len() <= 15);
        assert_ne!(bridge_name("test-1"), bridge_name("test-2"));
    }

    #[test]
    fn only_tables_of_this_deployment_are_ours() {
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
    fn a_stub_resolver_is_not_given_to_boxes() {
        assert!(nameservers("nameserver 127.0.0.53\nnameserver ::1\n").is_empty());
        let found = nameservers("# x\nnameserver 192.0.2.53\noptions edns0\n");
        assert_eq!(found, ["192.0.2.53".parse::<IpAddr>().unwrap()]);
    }
}
