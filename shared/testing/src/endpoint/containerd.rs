//! A running containerd.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A running containerd, in the form of a cluster's `containerd` object in the clusters file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerdEndpoint {
    pub socket: PathBuf,
    /// The directory for the driver's own files about its boxes.
    pub state_dir: PathBuf,
    /// The directory for the records of images. It is kept, as the images are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_records_dir: Option<PathBuf>,
    /// The static `boxd`, mounted into every box.
    pub boxd: PathBuf,
    pub subnet: Ipv4Net,
    pub bridge: String,
    /// The instance's unique name. Firewall tables and control groups named
    /// `agentbox-<deployment>` or `agentbox-<deployment>-…` are removed with the instance.
    pub deployment: String,
    /// The deployment whose firewall tables hold the boxes; `None`: this deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    pub dns_servers: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_bandwidth: Option<String>,
}

impl ContainerdEndpoint {
    /// The same containerd and network for another deployment with boxes of its own, so that
    /// tests can share one containerd. Everything that it leaves is removed with the instance.
    #[must_use]
    pub fn another_deployment(&self) -> Self {
        let name = hex::encode(rand::random::<[u8; 6]>());
        Self {
            // Below the instance's own directory, so that the clean-up finds it.
            state_dir: self.state_dir.join("shared").join(&name),
            network: Some(self.network.as_ref().unwrap_or(&self.deployment).clone()),
            deployment: format!("{}-{name}", self.deployment),
            ..self.clone()
        }
    }
}
