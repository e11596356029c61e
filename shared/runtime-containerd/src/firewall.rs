//! Puts a box's network policy in force, and takes it away.
//!
//! One pair of nftables tables a network, `agentbox-<network>`: in `bridge` a guard of
//! each box's port (own address only, no box to box on layer 2), in `inet` the policies.
//! Lookups are by map, so the cost of a packet does not grow with the number of boxes.
//!
//! * I1. Each change is one nftables transaction: wholly in force or not at all.
//! * I2. Each admission restates the tables' own rules, so a table that somebody
//!   removed or an older version wrote is whole again.
//! * I3. From the bridge, what is in no map is refused: a box whose rules are not (or no
//!   longer) there reaches nothing.
//! * I4. Tables stay when the last box goes: removing them could race with the next box,
//!   and without them a box would be open.

mod ruleset;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{NetworkPolicy, RuntimeError};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use ruleset::Ruleset;

use crate::config::Config;
use crate::network::BoxNetwork;

#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("cannot run {program}")]
    Start {
        program: PathBuf,
        source: std::io::Error,
    },
    #[error("nft did not finish within {0:?}")]
    Deadline(Duration),
    #[error("nft refused: {0}")]
    Refused(String),
    #[error("nft answered something else than JSON")]
    Json(#[from] serde_json::Error),
}

impl From<FirewallError> for RuntimeError {
    fn from(error: FirewallError) -> Self {
        match error {
            FirewallError::Deadline(after) => Self::Deadline(after),
            other => {
                let cause = std::error::Error::source(&other).map(ToString::to_string);
                let message = cause.map_or_else(|| other.to_string(), |c| format!("{other}: {c}"));
                Self::Cluster {
                    operation: "network policy",
                    message,
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
pub struct Firewall {
    ruleset: Ruleset,
    bridge: String,
    nft: PathBuf,
    deadline: Duration,
}

impl Firewall {
    pub fn new(config: &Config) -> Self {
        Self {
            ruleset: Ruleset::new(config),
            bridge: config.bridge.clone(),
            nft: config.nft.clone(),
            deadline: config.call_deadline(),
        }
    }

    /// In force when this returns. Again: replaced.
    pub async fn admit(
        &self,
        id: &EnvironmentId,
        network: &BoxNetwork,
        policy: &NetworkPolicy,
    ) -> Result<(), FirewallError> {
        self.answer_for_boxes().await;
        let script = self.ruleset.admit(id, network, policy);
        match self.load(&script).await {
            // The address was another box's, whose rules a killed process left. CNI gave
            // the address to this box, so the other one is gone.
            Err(FirewallError::Refused(message)) if message.contains("File exists") => {
                for former in self.holders_of(network).await? {
                    self.dismiss(&former, None).await?;
                }
                self.load(&script).await
            }
            outcome => outcome,
        }
    }

    /// Removes a box's rules; from then on it reaches nothing. `network` saves a look-up.
    pub async fn dismiss(
        &self,
        id: &EnvironmentId,
        network: Option<&BoxNetwork>,
    ) -> Result<(), FirewallError> {
        if let Some(network) = network
            && self.load(&self.ruleset.dismiss(id, network)).await.is_ok()
        {
            return Ok(());
        }
        // Not known, or not as remembered: remove what is really there.
        let elements = self.elements().await?;
        let Some(script) = self.ruleset.dismiss_found(id, &elements) else {
            return Ok(());
        };
        self.load(&script).await
    }

    /// Every box of this deployment that has rules, in both tables.
    pub async fn own_boxes(&self) -> Result<BTreeSet<EnvironmentId>, FirewallError> {
        let elements = self.elements().await?;
        let (own, senders) = (elements.members(self.ruleset.own()), elements.senders());
        let whole = |address: &Ipv4Addr| own.contains(address) && senders.contains(address);
        Ok(elements
            .egress
            .into_iter()
            .filter(|(a, _)| whole(a))
            .map(|(_, id)| id)
            .collect())
    }

    async fn holders_of(&self, network: &BoxNetwork) -> Result<Vec<EnvironmentId>, FirewallError> {
        let elements = self.elements().await?;
        let same = elements
            .egress
            .into_iter()
            .filter(|(address, _)| *address == network.address);
        Ok(same.map(|(_, id)| id).collect())
    }

    /// What is in the maps now; nothing when the tables are not there.
    async fn elements(&self) -> Result<ruleset::Elements, FirewallError> {
        let mut listed = Vec::new();
        for family in ["inet", "bridge"] {
            match self
                .run(&["-j", "list", "table", family, self.ruleset.table()], "")
                .await
            {
                Ok(json) => listed.push(serde_json::from_str::<Value>(&json)?),
                Err(FirewallError::Refused(message)) if is_absent(&message) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ruleset::Elements::read(&listed))
    }

    async fn load(&self, script: &str) -> Result<(), FirewallError> {
        self.run(&["-f", "-"], script).await.map(drop)
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<String, FirewallError> {
        let start = |source| FirewallError::Start {
            program: self.nft.clone(),
            source,
        };
        let mut child = Command::new(&self.nft)
            .args(arguments)
            .env("PATH", search_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let stdin = child.stdin.take();
        let talk = async move {
            if let Some(mut stdin) = stdin {
                // nft reads all of it first; a broken pipe shows in its exit status.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(self.deadline, talk)
            .await
            .map_err(|_| FirewallError::Deadline(self.deadline))?
            .map_err(start)?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(FirewallError::Refused(said.chars().take(1_000).collect()))
        }
    }

    /// Boxes never see each other's frames, so the host answers ARP for the box that is
    /// asked for, and every packet between boxes passes through our rules.
    async fn answer_for_boxes(&self) {
        let settings = Path::new("/proc/sys/net/ipv4");
        // By default such an answer waits for up to 0.8 s.
        for (of, name, value) in [
            ("conf", "proxy_arp_pvlan", "1"),
            ("conf", "send_redirects", "0"),
            ("neigh", "proxy_delay", "0"),
        ] {
            let setting = settings.join(of).join(&self.bridge).join(name);
            // Without it boxes that may reach each other cannot; nothing more opens.
            if let Err(error) = tokio::fs::write(setting, value).await {
                tracing::warn!(%error, name, bridge = self.bridge, "cannot set up the bridge");
            }
        }
    }
}

fn is_absent(message: &str) -> bool {
    message.contains("No such file or directory")
}

/// Sbin directories are not on every service's PATH, and nft lives there.
fn search_path() -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    format!("{inherited}:/usr/local/sbin:/usr/sbin:/sbin")
}
