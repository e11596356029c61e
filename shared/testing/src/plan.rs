//! The plan of an instance: `plan.json`, which its supervisor reads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::endpoint::kubernetes::ExistingKubernetes;

/// The components of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Components {
    pub postgres: bool,
    pub nats: bool,
    pub containerd: bool,
    /// A Kubernetes of one node; with `containerd`, boxes run on both.
    #[serde(default)]
    pub kubernetes: bool,
    /// The product's services. They need Postgres, NATS and a cluster.
    pub services: bool,
}

impl Components {
    pub const ALL: Self = Self {
        postgres: true,
        nats: true,
        containerd: true,
        kubernetes: false,
        services: true,
    };
    pub const NONE: Self = Self {
        postgres: false,
        nats: false,
        containerd: false,
        kubernetes: false,
        services: false,
    };
    /// Everything, with boxes on a Kubernetes.
    pub const ALL_ON_KUBERNETES: Self = Self {
        containerd: false,
        kubernetes: true,
        ..Self::ALL
    };
}

/// The input of the supervisor of one instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The instance's name. `None` for a test: the name follows from the slot that it takes.
    pub deployment: Option<String>,
    /// Written as `parts`, their first name, so that the programs of an older commit read the plan
    /// too: `make bench-compare` starts them.
    #[serde(rename = "parts", alias = "components")]
    pub components: Components,
    /// A cluster for boxes besides those of the components.
    #[serde(default)]
    pub existing: Option<ExistingKubernetes>,
    /// The number of replicas of each service.
    pub replicas: usize,
    /// Whether acknowledged writes survive a power failure. Tests do not need that.
    pub durable: bool,
    /// How much a box on containerd may send and receive, as in the clusters file; `None`: the driver's
    /// default.
    #[serde(default)]
    pub network_bandwidth: Option<String>,
    /// Whether the connections to NATS are encrypted.
    #[serde(default)]
    pub nats_tls: bool,
    /// Whether a trace collector, Jaeger, Prometheus and the canary run from the start.
    #[serde(default)]
    pub observe: bool,
    pub bin_dir: PathBuf,
    pub boxd: PathBuf,
    pub host: IpAddr,
    /// The public port; `None` for any free one.
    pub port: Option<u16>,
    /// Variables by service (`*` for every service): name and value.
    pub environment: BTreeMap<String, BTreeMap<String, String>>,
}

impl Plan {
    /// Whether a test owns the instance. Then nothing of the instance is kept.
    #[must_use]
    pub fn is_test(&self) -> bool {
        self.deployment.is_none()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn components_have_two_names_and_are_written_as_the_first() {
        let plan = |name: &str| {
            json!({
                "deployment": null,
                (name): Components::ALL,
                "replicas": 1,
                "durable": false,
                "bin_dir": "/bin",
                "boxd": "/boxd",
                "host": "127.0.0.1",
                "port": null,
                "environment": {},
            })
        };
        for name in ["parts", "components"] {
            let read: Plan = serde_json::from_value(plan(name)).unwrap();
            assert_eq!(read.components, Components::ALL);
            assert_eq!(json!(read)["parts"], json!(Components::ALL));
        }
    }
}
