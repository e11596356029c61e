//! What a containerd cluster's driver is told: the `containerd` object of the clusters
//! file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use agentbox_runtime::defaults::{self, MAX_DEPLOYMENT_NAME};
use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

/// The longest a Linux interface's name may be, without its closing zero.
const MAX_INTERFACE_NAME: usize = 15;
/// One containerd and the network its CNI configuration gives to boxes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// containerd's gRPC socket.
    pub socket: PathBuf,
    /// The driver's own files, shared by every replica on this machine and by no other
    /// deployment.
    pub state_dir: PathBuf,
    /// The static boxd on this machine; mounted read-only into every box.
    pub boxd: PathBuf,
    /// The boxes' addresses, as the CNI configuration hands them out.
    pub subnet: Ipv4Net,
    /// The bridge that the CNI configuration names.
    pub bridge: String,
    /// Which boxes are ours: `[a-z0-9-]`, at most 40 characters.
    pub deployment: String,
    /// What boxes use to resolve names; IPv6 ones are left out, boxes have no IPv6.
    pub dns_servers: Vec<IpAddr>,

    /// Names the firewall tables, `agentbox-<network>`. Default: `deployment`.
    /// Deployments that share one bridge must share this name: a table drops whatever
    /// comes from the bridge and is not in it.
    #[serde(default)]
    pub network: Option<String>,
    /// What `node_selector` is matched against, beside `kubernetes.io/{os,arch,hostname}`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Public addresses that boxes must not reach either: the operator's own services.
    #[serde(default)]
    pub blocked_egress_cidrs: Vec<IpNet>,
    /// What "no `network_policy`" means: the public internet (the default) or nothing.
    #[serde(default = "defaults::default_allow_internet")]
    pub default_allow_internet: bool,
    /// The nftables program. Default `nft`, looked for in the sbin directories too.
    #[serde(default = "nft")]
    pub nft: PathBuf,
    /// Seconds one image may take to come. Default 120.
    #[serde(default = "defaults::image_pull_deadline_s")]
    pub image_pull_deadline_s: u64,
    /// Seconds a sandbox with its network may take. Default 30.
    #[serde(default = "sandbox_deadline_s")]
    pub sandbox_deadline_s: u64,
    /// Seconds from a container's start until boxd answers. Default 20.
    #[serde(default = "defaults::start_deadline_s")]
    pub start_deadline_s: u64,
    /// Seconds for any other call. Default 10.
    #[serde(default = "defaults::call_deadline_s")]
    pub call_deadline_s: u64,
    /// Milliseconds for a TCP connection to a boxd. Default 2000.
    #[serde(default = "defaults::connect_deadline_ms")]
    pub connect_deadline_ms: u64,
}

fn nft() -> PathBuf {
    PathBuf::from("nft")
}
const fn sandbox_deadline_s() -> u64 {
    30
}

/// The configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("`{field}` is `{value}`: only a-z, 0-9 and `-`, 1 to {MAX_DEPLOYMENT_NAME} characters")]
    Name { field: &'static str, value: String },
    #[error("`bridge` is `{0}`, which cannot be an interface's name")]
    Bridge(String),
    #[error("`{field}` is {path}: it must be an absolute path")]
    RelativePath { field: &'static str, path: PathBuf },
}

impl Config {
    /// # Errors
    /// When a name or path cannot be what it says; nothing is looked up.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("deployment", self.deployment.as_str()),
            ("network", self.network()),
        ] {
            let named = defaults::is_deployment_name(value);
            if !named {
                return Err(ConfigError::Name {
                    field,
                    value: value.to_owned(),
                });
            }
        }
        // It is written into firewall rules: nothing that could end a word there.
        let interface = (1..=MAX_INTERFACE_NAME).contains(&self.bridge.len())
            && self
                .bridge
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !interface {
            return Err(ConfigError::Bridge(self.bridge.clone()));
        }
        for (field, path) in [
            ("socket", &self.socket),
            ("state_dir", &self.state_dir),
            ("boxd", &self.boxd),
        ] {
            if !path.is_absolute() {
                return Err(ConfigError::RelativePath {
                    field,
                    path: path.clone(),
                });
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn network(&self) -> &str {
        self.network.as_deref().unwrap_or(&self.deployment)
    }

    pub(crate) fn call_deadline(&self) -> Duration {
        Duration::from_secs(self.call_deadline_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> serde_json::Value {
        serde_json::json!({
            "socket": "/run/x/containerd.sock", "state_dir": "/var/lib/x/boxes",
            "boxd": "/usr/lib/x/boxd", "subnet": "10.160.0.0/20", "bridge": "abx0",
            "deployment": "local-1", "dns_servers": ["192.0.2.53"],
        })
    }

    #[test]
    fn what_the_clusters_file_must_say_is_enough() {
        let config: Config = serde_json::from_value(minimal()).unwrap();
        config.validate().unwrap();
        assert_eq!(config.network(), "local-1");
        assert_eq!(config.image_pull_deadline_s, 120);
        assert!(config.default_allow_internet);
    }

    #[test]
    fn a_name_that_could_break_a_rule_or_a_path_is_refused() {
        for (field, value) in [
            ("deployment", ""),
            ("deployment", "a/b"),
            ("deployment", "-a"),
            ("network", "a;flush ruleset"),
            ("bridge", "abx0\" drop"),
            ("bridge", "a-name-that-is-too-long"),
            ("boxd", "boxd"),
        ] {
            let mut json = minimal();
            json[field] = value.into();
            let config: Config = serde_json::from_value(json).unwrap();
            assert!(config.validate().is_err(), "{field}={value}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let mut json = minimal();
        json["sokcet"] = "/x".into();
        assert!(serde_json::from_value::<Config>(json).is_err());
    }
}
