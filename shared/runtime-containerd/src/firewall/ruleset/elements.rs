//! The elements of nftables' sets and maps, from its JSON. Pure.

use std::net::Ipv4Addr;

use agentbox_contracts::ids::EnvironmentId;
use serde_json::Value;

/// The elements of the driver's tables.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Elements {
    /// The box at each address.
    pub egress: Vec<(Ipv4Addr, EnvironmentId)>,
    /// Elements of the other sets and maps: the set's name and the key's parts.
    pub others: Vec<(String, Vec<String>)>,
    pub chains: Vec<String>,
}

impl Elements {
    /// Reads the answers of `nft -j list table`.
    pub fn read(listed: &[Value]) -> Self {
        let mut found = Self::default();
        for item in listed
            .iter()
            .filter_map(|v| v["nftables"].as_array())
            .flatten()
        {
            if let Some(chain) = item["chain"]["name"].as_str() {
                found.chains.push(chain.to_owned());
            }
            let set = if item["map"].is_object() {
                &item["map"]
            } else {
                &item["set"]
            };
            let Some(name) = set["name"].as_str() else {
                continue;
            };
            for element in set["elem"].as_array().into_iter().flatten() {
                found.add(name, element);
            }
        }
        found
    }

    /// The addresses in a set of addresses.
    pub fn members(&self, set: &str) -> Vec<Ipv4Addr> {
        self.others
            .iter()
            .filter(|(name, _)| name == set)
            .filter_map(|(_, key)| key.first()?.parse().ok())
            .collect()
    }

    /// The sender addresses that the ports' guards accept.
    pub fn senders(&self) -> Vec<Ipv4Addr> {
        self.others
            .iter()
            .filter(|(name, _)| name == "senders")
            .filter_map(|(_, key)| key.get(2)?.parse().ok())
            .collect()
    }

    fn add(&mut self, name: &str, element: &Value) {
        // An element with a timeout or a state is an object.
        let with_state = element.get("elem").and_then(|object| object.get("val"));
        let element = with_state.unwrap_or(element);
        // A map's element is [key, verdict].
        let (key, verdict) = match element.as_array().map(Vec::as_slice) {
            Some([key, verdict]) => (key, Some(verdict)),
            _ => (element, None),
        };
        let target = verdict
            .and_then(|v| {
                v["goto"]["target"]
                    .as_str()
                    .or_else(|| v["jump"]["target"].as_str())
            })
            .unwrap_or_default();
        let parts: Vec<String> = match key["concat"].as_array() {
            Some(parts) => parts
                .iter()
                .filter_map(|p| p.as_str().map(str::to_owned))
                .collect(),
            None => key.as_str().map(str::to_owned).into_iter().collect(),
        };
        if name == "egress" {
            let address = parts.first().and_then(|text| text.parse().ok());
            let id = target.strip_prefix("out-").and_then(|id| id.parse().ok());
            self.egress.extend(address.zip(id));
        } else if name != "ports" {
            self.others.push((name.to_owned(), parts));
        }
    }
}
