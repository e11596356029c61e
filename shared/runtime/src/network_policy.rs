//! A box's network policy, parsed. A request's policy is parsed here and nowhere else; the
//! scheduler carries the result, and drivers only render it.
//!
//! * I1. A policy denies everything that it does not list, both ways.
//! * I2. No policy opens the port of boxd: [`IngressPort`] cannot hold it.

use std::num::NonZeroU16;

use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_contracts::environment as request;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address_ranges::denied_range;

/// The network access of a box, in both directions. The default opens nothing.
///
/// The serialized form is stored with every box, so that its names must not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// The public internet, and name resolution.
    #[serde(rename = "internet")]
    pub allow_internet: bool,
    /// Networks beyond the public internet.
    #[serde(rename = "egress")]
    pub allowed_egress_cidrs: Vec<IpNet>,
    /// TCP ports of the box that any client may connect to.
    #[serde(rename = "ingress_ports")]
    pub allowed_ingress_ports: Vec<IngressPort>,
    /// Other boxes of the same owner that allow it too.
    #[serde(rename = "boxes")]
    pub allow_cluster_internal: bool,
}

/// A TCP port that a policy may open: not 0, and not boxd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct IngressPort(NonZeroU16);

/// A rule that a request's network policy breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkPolicyError {
    NotCidr(String),
    AlwaysDenied { cidr: String, range: &'static str },
    PortZero,
    BoxdPort,
}

impl std::error::Error for NetworkPolicyError {}

impl std::fmt::Display for NetworkPolicyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {}, is `{}`",
            self.field(),
            self.rule(),
            self.value()
        )
    }
}

impl NetworkPolicyError {
    /// The field, as in the request.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::NotCidr(_) | Self::AlwaysDenied { .. } => {
                "isolation.network_policy.allowed_egress_cidrs"
            }
            Self::PortZero | Self::BoxdPort => "isolation.network_policy.allowed_ingress_ports",
        }
    }

    /// The rule, without the field and the value.
    #[must_use]
    pub fn rule(&self) -> String {
        match self {
            Self::NotCidr(_) => "must be CIDRs such as 10.0.0.0/8".to_owned(),
            Self::AlwaysDenied { range, .. } => {
                format!("must not lie in {range}, which no environment reaches")
            }
            Self::PortZero => "must be 1 to 65535".to_owned(),
            Self::BoxdPort => "must not be the port of boxd, which only AgentBox uses".to_owned(),
        }
    }

    /// The value that breaks it.
    #[must_use]
    pub fn value(&self) -> String {
        match self {
            Self::NotCidr(cidr) | Self::AlwaysDenied { cidr, .. } => cidr.clone(),
            Self::PortZero => "0".to_owned(),
            Self::BoxdPort => DEFAULT_PORT.to_string(),
        }
    }
}

impl NetworkPolicy {
    /// Parses a request's policy.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse(request: &request::NetworkPolicy) -> Result<Self, NetworkPolicyError> {
        let egress = request
            .allowed_egress_cidrs
            .iter()
            .map(|text| parse_egress_cidr(text))
            .collect::<Result<Vec<_>, _>>()?;
        let ports = request
            .allowed_ingress_ports
            .iter()
            .map(|port| IngressPort::try_from(*port))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            allow_internet: request.allow_internet,
            allowed_egress_cidrs: IpNet::aggregate(&egress),
            allowed_ingress_ports: ports,
            allow_cluster_internal: request.allow_cluster_internal,
        })
    }

    /// The policy of a box whose request has none.
    #[must_use]
    pub fn unspecified(default_allow_internet: bool) -> Self {
        Self {
            allow_internet: default_allow_internet,
            ..Self::default()
        }
    }
}

/// # Errors
/// When it is no CIDR, or one that opens nothing.
fn parse_egress_cidr(text: &str) -> Result<IpNet, NetworkPolicyError> {
    let network: IpNet = text
        .parse()
        .map_err(|_| NetworkPolicyError::NotCidr(text.to_owned()))?;
    match denied_range(&network) {
        Some(range) => Err(NetworkPolicyError::AlwaysDenied {
            cidr: text.to_owned(),
            range,
        }),
        None => Ok(network.trunc()),
    }
}

impl IngressPort {
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<u16> for IngressPort {
    type Error = NetworkPolicyError;

    fn try_from(port: u16) -> Result<Self, NetworkPolicyError> {
        match NonZeroU16::new(port) {
            None => Err(NetworkPolicyError::PortZero),
            Some(_) if port == DEFAULT_PORT => Err(NetworkPolicyError::BoxdPort),
            Some(port) => Ok(Self(port)),
        }
    }
}

impl From<IngressPort> for u16 {
    fn from(port: IngressPort) -> Self {
        port.get()
    }
}

impl std::fmt::Display for IngressPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(cidrs: &[&str], ports: &[u16]) -> request::NetworkPolicy {
        request::NetworkPolicy {
            allowed_egress_cidrs: cidrs.iter().map(|&cidr| cidr.to_owned()).collect(),
            allowed_ingress_ports: ports.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn invalid_policy_returns_field_and_value() {
        const CIDRS: &str = "isolation.network_policy.allowed_egress_cidrs";
        const PORTS: &str = "isolation.network_policy.allowed_ingress_ports";
        for (cidrs, ports, field, value) in [
            (&["10.0.0.0/33"][..], &[][..], CIDRS, "10.0.0.0/33"),
            (
                &["10.0.0.0/8", "10.0.0.0/8 } accept"],
                &[],
                CIDRS,
                "10.0.0.0/8 } accept",
            ),
            (&["10.0.0.1"], &[], CIDRS, "10.0.0.1"),
            (&["169.254.169.254/32"], &[], CIDRS, "169.254.169.254/32"),
            (&[], &[80, 0], PORTS, "0"),
            (&[], &[DEFAULT_PORT], PORTS, "10777"),
        ] {
            let error = NetworkPolicy::parse(&request(cidrs, ports)).unwrap_err();
            assert_eq!((error.field(), error.value().as_str()), (field, value));
            let text = format!("{field}: {}, is `{value}`", error.rule());
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn egress_networks_are_truncated_and_aggregated() {
        let cidrs = request(&["10.1.2.3/8", "10.1.0.0/16", "fd00::1/8"], &[80]);
        let policy = NetworkPolicy::parse(&cidrs).unwrap();
        let networks: Vec<String> = policy
            .allowed_egress_cidrs
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(networks, ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(policy.allowed_ingress_ports[0].get(), 80);
    }

    #[test]
    fn unspecified_policy_allows_internet_only_by_default() {
        assert!(NetworkPolicy::unspecified(true).allow_internet);
        assert_eq!(NetworkPolicy::unspecified(false), NetworkPolicy::default());
    }

    #[test]
    fn stored_policy_reads_as_written_and_never_opens_boxd() {
        let stored =
            r#"{"internet":true,"egress":["10.0.0.0/8"],"ingress_ports":[80],"boxes":true}"#;
        let policy: NetworkPolicy = serde_json::from_str(stored).unwrap();
        assert_eq!(serde_json::to_string(&policy).unwrap(), stored);
        let forged = stored.replace("80", &DEFAULT_PORT.to_string());
        assert!(serde_json::from_str::<NetworkPolicy>(&forged).is_err());
    }
}
