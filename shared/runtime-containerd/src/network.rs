//! A box's network, as the CNI result describes it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use agentbox_contracts::ids::UserId;
use serde::{Deserialize, Serialize};

/// The addresses and the bridge port of a box, and its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxNetwork {
    pub address: Ipv4Addr,
    /// The hardware address of the box's interface.
    pub mac: String,
    /// The host's end of the box's veth pair: its port on the bridge.
    pub port: String,
    /// The owner, whose other boxes a policy may open. `None` in a state file of an older version:
    /// no box is opened then.
    #[serde(default)]
    pub owner: Option<UserId>,
}

/// A box's end of its network, before its neighbours are restricted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The file of its network namespace. Not that of a process, whose id could belong to another one
    /// by now.
    pub namespace: PathBuf,
    pub interface: String,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the sandbox info of containerd is not JSON")]
    Json(#[from] serde_json::Error),
    #[error("the CNI result has no {0}")]
    Missing(&'static str),
    #[error("the CNI result has `{0}`, which is unsafe in a firewall rule")]
    Unsafe(String),
}

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "cniResult")]
    cni_result: Option<CniResult>,
}

#[derive(Deserialize)]
struct CniResult {
    #[serde(rename = "Interfaces", default)]
    interfaces: BTreeMap<String, Interface>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(rename = "IPConfigs", default)]
    addresses: Option<Vec<AddressConfig>>,
    #[serde(rename = "Mac", default)]
    mac: String,
    /// A path of a network namespace; empty: the host's.
    #[serde(rename = "Sandbox", default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct AddressConfig {
    #[serde(rename = "IP")]
    address: IpAddr,
    /// Empty: none.
    #[serde(rename = "Gateway", default)]
    gateway: String,
}

impl BoxNetwork {
    /// Reads the `info` that containerd adds to a verbose sandbox status: the network, without an
    /// owner, and its end in the box.
    ///
    /// # Errors
    /// When the box's interface, address, gateway or port is missing.
    pub fn read(info: &str, bridge: &str) -> Result<(Self, Inside), NetworkError> {
        let info: Info = serde_json::from_str(info)?;
        let interfaces = info
            .cni_result
            .ok_or(NetworkError::Missing("interfaces"))?
            .interfaces;
        let (interface, inside) = interfaces
            .iter()
            .find(|(name, interface)| *name != "lo" && !interface.sandbox.is_empty())
            .ok_or(NetworkError::Missing("interface in the box"))?;
        let (address, gateway) = inside
            .addresses
            .iter()
            .flatten()
            .find_map(|config| match config.address {
                IpAddr::V4(address) => Some((address, config.gateway.as_str())),
                IpAddr::V6(_) => None,
            })
            .ok_or(NetworkError::Missing("IPv4 address"))?;
        let gateway = gateway
            .parse()
            .map_err(|_| NetworkError::Missing("IPv4 gateway"))?;
        let port = interfaces
            .iter()
            .find(|(name, interface)| interface.sandbox.is_empty() && *name != bridge)
            .ok_or(NetworkError::Missing("port on the bridge"))?
            .0;
        let network = Self {
            address,
            mac: inside.mac.to_lowercase(),
            port: port.clone(),
            owner: None,
        };
        let inside = Inside {
            namespace: PathBuf::from(&inside.sandbox),
            interface: interface.clone(),
            address,
            gateway,
        };
        Ok((network.checked()?, inside))
    }

    /// Checks the texts that go into firewall rules.
    fn checked(self) -> Result<Self, NetworkError> {
        let mac = self.mac.split(':').collect::<Vec<_>>();
        let is_mac = mac.len() == 6
            && mac
                .iter()
                .all(|b| b.len() == 2 && b.bytes().all(|c| c.is_ascii_hexdigit()));
        if !is_mac {
            return Err(NetworkError::Unsafe(self.mac));
        }
        let is_port = (1..=15).contains(&self.port.len())
            && self
                .port
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !is_port {
            return Err(NetworkError::Unsafe(self.port));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(mac: &str, port: &str) -> String {
        serde_json::json!({
            "cniResult": { "Interfaces": {
                "abx0": { "IPConfigs": null, "Mac": "02:00:00:00:00:01", "Sandbox": "" },
                "eth0": {
                    "IPConfigs": [
                        { "IP": "fd00::5", "Gateway": "" },
                        { "IP": "10.160.0.5", "Gateway": "10.160.0.1" },
                    ],
                    "Mac": mac, "Sandbox": "/run/netns/cni-1",
                },
                "lo": {
                    "IPConfigs": [{ "IP": "127.0.0.1", "Gateway": "" }],
                    "Mac": "00:00:00:00:00:00", "Sandbox": "/run/netns/cni-1",
                },
                port: { "IPConfigs": null, "Mac": "02:00:00:00:00:02", "Sandbox": "" },
            }},
        })
        .to_string()
    }

    #[test]
    fn cni_result_yields_interface_and_bridge_port() {
        assert_eq!(
            BoxNetwork::read(&info("0A:58:0A:A0:00:05", "veth1234"), "abx0").unwrap(),
            (
                BoxNetwork {
                    address: Ipv4Addr::new(10, 160, 0, 5),
                    mac: "0a:58:0a:a0:00:05".into(),
                    port: "veth1234".into(),
                    owner: None,
                },
                Inside {
                    namespace: "/run/netns/cni-1".into(),
                    interface: "eth0".into(),
                    address: Ipv4Addr::new(10, 160, 0, 5),
                    gateway: Ipv4Addr::new(10, 160, 0, 1),
                },
            )
        );
    }

    #[test]
    fn unsafe_rule_text_is_refused() {
        for (mac, port) in [
            ("02:00", "veth1"),
            ("02:00:00:00:00:0g", "veth1"),
            ("02:00:00:00:00:05", "v\" }"),
        ] {
            assert!(
                matches!(
                    BoxNetwork::read(&info(mac, port), "abx0"),
                    Err(NetworkError::Unsafe(_))
                ),
                "{mac} {port}"
            );
        }
    }

    #[test]
    fn sandbox_without_network_is_an_error() {
        assert!(BoxNetwork::read("{}", "abx0").is_err());
        assert!(BoxNetwork::read("", "abx0").is_err());
    }
}
