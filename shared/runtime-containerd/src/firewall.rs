//! Installs and removes the firewall rules of a box's network policy, and restricts its neighbours.
//!
//! Each network has one pair of nftables tables, `agentbox-<network>`. The table in `bridge` guards
//! each box's port: own address only, no box to box on layer 2. The table in `inet` has the
//! policies. Lookups are by map, so that a packet's cost does not grow with the number of boxes.
//!
//! * I1. Each change is one nftables transaction: all of it is in force, or nothing.
//! * I2. Each installation writes the rules that belong to no box again, so that a table that was
//!   deleted, or written by an older version, is complete again.
//! * I3. A packet from the bridge whose sender is in no map is refused: a box without rules
//!   reaches nothing.
//! * I4. A removed box leaves no entry in the machine's connection table. An open connection would stay
//!   there for days, so that boxes which are created and removed again could fill it.
//! * I5. The tables stay when the last box is removed: deleting them could race with the next
//!   box, and without them a box would be open.

mod nftables;
mod ruleset;

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{NetworkPolicy, RuntimeError};
use serde_json::Value;
use tokio::process::Command;

use nftables::NftablesError;
use ruleset::Ruleset;

use crate::config::Config;
use crate::context::search_path;
use crate::network::{BoxNetwork, Inside};
use crate::{namespace, routes};

/// The program of conntrack-tools.
const CONNTRACK: &str = "conntrack";

#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("cannot restrict the neighbours of a box")]
    Namespace(#[source] std::io::Error),
    #[error("nftables did not finish within {0:?}")]
    Deadline(Duration),
    #[error(transparent)]
    Nftables(#[from] NftablesError),
    #[error("nftables did not list JSON")]
    Json(#[from] serde_json::Error),
}

impl From<FirewallError> for RuntimeError {
    fn from(error: FirewallError) -> Self {
        match error {
            FirewallError::Deadline(after) => Self::Deadline(after),
            other => Self::Cluster {
                operation: "network policy",
                message: ErrorChain(&other).to_string(),
            },
        }
    }
}

#[derive(Clone, Debug)]
pub struct Firewall {
    ruleset: Ruleset,
    bridge: String,
    deadline: Duration,
}

impl Firewall {
    pub fn new(config: &Config) -> Self {
        Self {
            ruleset: Ruleset::new(config),
            bridge: config.bridge.clone(),
            deadline: config.call_deadline(),
        }
    }

    /// Installs a box's rules, or replaces them. They are in force when this returns.
    pub async fn install(
        &self,
        id: &EnvironmentId,
        network: &BoxNetwork,
        policy: &NetworkPolicy,
    ) -> Result<(), FirewallError> {
        self.configure_bridge().await;
        let script = self.ruleset.install(id, network, policy);
        match self.load(&script).await {
            // A killed process left the rules of the address's former box. That box is gone:
            // CNI gave the address to this one.
            Err(FirewallError::Nftables(NftablesError::Refused(message)))
                if message.contains("File exists") =>
            {
                for former in self.boxes_at(network).await? {
                    let addresses = self.remove(&former, None).await?;
                    self.forget_connections(&addresses).await;
                }
                self.load(&script).await
            }
            outcome => outcome,
        }
    }

    /// Replaces the rules of a box that has rules already. Faster than [`Self::install`]: the rules that
    /// belong to no box are left as they are, unless they are incomplete.
    pub async fn replace(
        &self,
        id: &EnvironmentId,
        network: &BoxNetwork,
        policy: &NetworkPolicy,
    ) -> Result<(), FirewallError> {
        let script = self.ruleset.rules_of_box(id, network, policy);
        match self.load(&script).await {
            Err(FirewallError::Nftables(NftablesError::Refused(_))) => {
                self.install(id, network, policy).await
            }
            outcome => outcome,
        }
    }

    /// Makes the gateway the only neighbour of a box. Otherwise a box could fill the tables of
    /// neighbours (ARP and its IPv6 form), which all network namespaces of the machine share, by a packet
    /// to each address.
    ///
    /// A route to the gateway replaces the one to the boxes' whole network, which the box's address has:
    /// packets between boxes pass the machine with either. Sockets can avoid routes
    /// (`MSG_DONTROUTE`, multicast, link-local addresses), so rules in the box's own namespace refuse
    /// every other next hop.
    pub async fn restrict_neighbours(&self, inside: &Inside) -> Result<(), FirewallError> {
        let rules = ruleset::one_neighbour(inside.gateway);
        let (inside, subnet) = (inside.clone(), self.ruleset.subnet());
        let namespace = inside.namespace.clone();
        let restricted = async {
            let turn = nftables::turn().await;
            let restrict = move || {
                routes::replace(&inside, subnet)?;
                nftables::run_here(turn, &rules).map_err(io::Error::other)
            };
            let entered = namespace::enter(namespace, restrict).await;
            entered.map_err(FirewallError::Namespace)
        };
        self.in_time(restricted).await
    }

    /// Removes a box's rules; from then on it reaches nothing. With `network` this needs no
    /// listing. Returns the box's addresses, for [`Self::forget_connections`].
    pub async fn remove(
        &self,
        id: &EnvironmentId,
        network: Option<&BoxNetwork>,
    ) -> Result<Vec<Ipv4Addr>, FirewallError> {
        if let Some(network) = network
            && self.load(&self.ruleset.remove(id, network)).await.is_ok()
        {
            if let Some(script) = self.ruleset.remove_owner_set(network) {
                // Best effort: the kernel refuses it while a rule of another box uses the set.
                let _ = self.load(&script).await;
            }
            return Ok(vec![network.address]);
        }
        // The network is unknown or outdated: the elements that nft lists are removed.
        let elements = self.elements().await?;
        let Some(script) = self.ruleset.remove_listed(id, &elements) else {
            return Ok(Vec::new());
        };
        self.load(&script).await?;
        let of_box = elements
            .egress
            .into_iter()
            .filter(|(_, box_id)| box_id == id);
        Ok(of_box.map(|(address, _)| address).collect())
    }

    /// Deletes the entries of a removed box's addresses in the machine's connection table.
    pub async fn forget_connections(&self, addresses: &[Ipv4Addr]) {
        for address in addresses {
            let address = address.to_string();
            tokio::join!(
                self.forget("--orig-src", &address),
                self.forget("--orig-dst", &address)
            );
        }
    }

    /// Best effort: without it the entries end by their own timeouts.
    async fn forget(&self, end: &str, address: &str) {
        let deleting = Command::new(CONNTRACK)
            .args(["-D", end, address])
            .env("PATH", search_path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let failure = match tokio::time::timeout(self.deadline, deleting).await {
            Err(_) => format!("{CONNTRACK} did not finish within {:?}", self.deadline),
            Ok(Err(error)) => ErrorChain(&error).to_string(),
            Ok(Ok(output)) if output.status.success() => return,
            Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        if !failure.contains("0 flow entries") {
            let error: String = failure.chars().take(1_000).collect();
            tracing::warn!(
                error,
                address,
                "could not delete the connections of a removed box"
            );
        }
    }

    /// Every box of this deployment that has rules, in both tables.
    pub async fn own_boxes(&self) -> Result<BTreeSet<EnvironmentId>, FirewallError> {
        let elements = self.elements().await?;
        let (own, senders) = (
            elements.members(self.ruleset.deployment_set()),
            elements.senders(),
        );
        let is_complete = |address: &Ipv4Addr| own.contains(address) && senders.contains(address);
        Ok(elements
            .egress
            .into_iter()
            .filter(|(address, _)| is_complete(address))
            .map(|(_, id)| id)
            .collect())
    }

    async fn boxes_at(&self, network: &BoxNetwork) -> Result<Vec<EnvironmentId>, FirewallError> {
        let elements = self.elements().await?;
        let holders = elements
            .egress
            .into_iter()
            .filter(|(address, _)| *address == network.address);
        Ok(holders.map(|(_, id)| id).collect())
    }

    /// Lists the elements of the tables; none when the tables do not exist.
    async fn elements(&self) -> Result<ruleset::Elements, FirewallError> {
        let mut listed = Vec::new();
        for family in ["inet", "bridge"] {
            let table = self.ruleset.table();
            match self.list(&format!("list table {family} {table}\n")).await {
                Ok(json) => listed.push(serde_json::from_str::<Value>(&json)?),
                Err(FirewallError::Nftables(NftablesError::Refused(message)))
                    if is_absent(&message) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ruleset::Elements::read(&listed))
    }

    async fn load(&self, script: &str) -> Result<(), FirewallError> {
        self.in_time(async { Ok(nftables::change(script).await?) })
            .await
    }

    async fn list(&self, commands: &str) -> Result<String, FirewallError> {
        self.in_time(async { Ok(nftables::list(commands).await?) })
            .await
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, FirewallError>>,
    ) -> Result<T, FirewallError> {
        let in_time = tokio::time::timeout(self.deadline, work).await;
        in_time.unwrap_or(Err(FirewallError::Deadline(self.deadline)))
    }

    /// Lets the machine answer ARP for boxes. Boxes do not receive each other's frames, so that
    /// every packet between them passes the rules.
    async fn configure_bridge(&self) {
        let settings = Path::new("/proc/sys/net/ipv4");
        // The default proxy delay is up to 0.8 s.
        for (directory, name, value) in [
            ("conf", "proxy_arp_pvlan", "1"),
            ("conf", "send_redirects", "0"),
            ("neigh", "proxy_delay", "0"),
        ] {
            let setting = settings.join(directory).join(&self.bridge).join(name);
            // Without it boxes cannot reach each other; it opens nothing.
            if let Err(error) = tokio::fs::write(setting, value).await {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    setting = name,
                    bridge = self.bridge,
                    "could not configure the bridge"
                );
            }
        }
    }
}

fn is_absent(message: &str) -> bool {
    message.contains("No such file or directory")
}
