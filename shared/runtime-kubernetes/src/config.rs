//! The driver's configuration: the `kubernetes` object of the clusters file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use agentbox_runtime::bounds::{self, BoundError};
use agentbox_runtime::defaults::{self, MAX_DEPLOYMENT_NAME};
use agentbox_runtime::preflight::is_allowed_runtime_class;
use ipnet::IpNet;
use serde::Deserialize;

use crate::objects::{PULL_SECRET, SECRET};

/// One Kubernetes cluster, with the networks that boxes need or must never reach.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name of the deployment, which labels its boxes: `[a-z0-9-]`, at most 40 characters.
    pub deployment: String,
    /// The image that holds `/boxd`, static.
    pub boxd_image: String,
    /// The networks of pods, services and nodes. A policy opens nothing in them except other
    /// boxes. The addresses that the Node objects report are added.
    pub cluster_cidrs: Vec<IpNet>,

    /// How `/boxd` gets into a box. Default `init_container`.
    #[serde(default)]
    pub boxd_delivery: Delivery,
    /// Labels of the cluster as a whole, which count as every node's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How to reach the API server. Absent: as a Pod of the cluster itself.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// The context in it. Absent: its current one.
    #[serde(default)]
    pub context: Option<String>,
    /// The namespace of the services and of the boxes' endpoints; it must exist. Its pods may
    /// reach every boxd. Default `agentbox-system`.
    #[serde(default = "system_namespace")]
    pub system_namespace: String,
    /// Other networks that may reach boxd: exec-proxies outside the cluster.
    #[serde(default)]
    pub boxd_client_cidrs: Vec<IpNet>,
    /// The cluster's DNS domain. Default `cluster.local`.
    #[serde(default = "cluster_domain")]
    pub cluster_domain: String,
    /// The resolvers of boxes. Empty: the cluster's DNS, in `kube-system`.
    #[serde(default)]
    pub dns_servers: Vec<IpAddr>,
    /// Public addresses that boxes must not reach either: the operator's own services.
    #[serde(default)]
    pub blocked_egress_cidrs: Vec<IpNet>,
    /// Whether a box without a `network_policy` may reach the public internet. Default true.
    #[serde(default = "defaults::default_allow_internet")]
    pub default_allow_internet: bool,
    /// Bits per second that a box may send, and as many that it may receive: `1M` to `100G`, or
    /// `none`. The cluster's network plugin enforces it, if it can. Default `1G`.
    #[serde(
        default = "bounds::network_bandwidth",
        deserialize_with = "bounds::quantity_or_none"
    )]
    pub network_bandwidth: Option<u64>,
    /// Connections of a box in each direction: 16 or more, or `none`. Calico 3.30 or newer enforces
    /// it. Default 4096.
    #[serde(
        default = "bounds::network_connections",
        deserialize_with = "bounds::quantity_or_none"
    )]
    pub network_connections: Option<u64>,
    /// The runtime class of a box whose request names none. Absent: the cluster's own default.
    #[serde(default)]
    pub default_runtime_class: Option<String>,
    /// The runtime classes that a request may name. Absent: every class of the cluster.
    #[serde(default)]
    pub allowed_runtime_classes: Option<Vec<String>>,
    /// Whether a Pod without a runtime class has a user namespace of its own (`hostUsers: false`). Every node
    /// needs containerd 2.0 and runc 1.2, or their like: Kubernetes reports neither, and on an older node
    /// no box starts. Default false.
    #[serde(default)]
    pub user_namespaces: bool,
    /// The keys of the nodes' labels that a `node_selector` may have, beside the cluster's own
    /// `labels`. Default none.
    #[serde(default)]
    pub allowed_node_labels: Vec<String>,
    /// The tolerations that a request may have. Default none.
    #[serde(default)]
    pub allowed_tolerations: Vec<AllowedToleration>,
    /// Pull secrets of the system namespace. A box's namespace gets their login for boxd's image
    /// alone.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// Pull secrets of the system namespace that are copied to each box's namespace as they are:
    /// every user can pull with them. Default none.
    #[serde(default)]
    pub shared_pull_secrets: Vec<String>,
    /// What keeps an image that a node has from users who may not pull it. Default `pull`.
    #[serde(default)]
    pub present_images: PresentImages,
    /// The Pod Security Standard that a box's namespace enforces. Default `baseline`.
    #[serde(default = "pod_security")]
    pub pod_security: String,
    /// A Pod requests its CPU limit divided by this. Default 20.
    #[serde(default = "cpu_overcommit")]
    pub cpu_overcommit: u64,
    /// As `cpu_overcommit`, of memory. Default 4.
    #[serde(default = "memory_overcommit")]
    pub memory_overcommit: u64,
    /// Seconds that an image pull may fail for a transient reason. Default 120.
    #[serde(default = "defaults::image_pull_deadline_s")]
    pub image_pull_deadline_s: u64,
    /// Seconds that a Pod may wait for a node; a new one may be joining. Default 120.
    #[serde(default = "unschedulable_deadline_s")]
    pub unschedulable_deadline_s: u64,
    /// Seconds that a node may be unready before its boxes count as lost. Default 60.
    #[serde(default = "node_lost_after_s")]
    pub node_lost_after_s: u64,
    /// Seconds that `ensure` waits for a Pod to run before it returns `Starting`.
    /// Default 20.
    #[serde(default = "defaults::start_deadline_s")]
    pub start_deadline_s: u64,
    /// Seconds that a Pod may take to end and be gone, beyond its grace period. Default 30.
    #[serde(default = "removal_deadline_s")]
    pub removal_deadline_s: u64,
    /// Seconds for any other call. Default 10.
    #[serde(default = "defaults::call_deadline_s")]
    pub call_deadline_s: u64,
    /// How to connect to boxd. Default `pod_ip`.
    #[serde(default)]
    pub reach: Reach,
    /// Milliseconds for a connection to a boxd. Default 2000.
    #[serde(default = "defaults::connect_deadline_ms")]
    pub connect_deadline_ms: u64,
}

/// A taint that requests may tolerate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowedToleration {
    pub key: String,
    /// Absent: every value, and the operator `Exists`.
    #[serde(default)]
    pub value: Option<String>,
    /// Absent: every effect.
    #[serde(default)]
    pub effect: Option<String>,
}

/// How `/boxd` gets into a box.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// An init container copies it, on any cluster.
    #[default]
    InitContainer,
    /// Its image is a volume of the Pod: faster, where the cluster has image volumes and its
    /// nodes mount them executable.
    ImageVolume,
}

/// What happens before a box uses an image that its node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresentImages {
    /// The node asks the image's registry (`imagePullPolicy: Always`).
    #[default]
    Pull,
    /// The kubelet compares the pull secrets (its feature `KubeletEnsureSecretPulledImages`, which
    /// Kubernetes 1.35 enables): without a request to the registry.
    Kubelet,
}

/// The way to a box's boxd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Directly to the Pod's address: from inside the cluster, or where Pods are routed.
    #[default]
    PodIp,
    /// Through the API server, from anywhere: slower, and not into a box on gVisor.
    PortForward,
}

fn system_namespace() -> String {
    "agentbox-system".to_owned()
}
fn cluster_domain() -> String {
    "cluster.local".to_owned()
}
fn pod_security() -> String {
    "baseline".to_owned()
}
const fn cpu_overcommit() -> u64 {
    20
}
const fn memory_overcommit() -> u64 {
    4
}
const fn unschedulable_deadline_s() -> u64 {
    120
}
const fn node_lost_after_s() -> u64 {
    60
}
const fn removal_deadline_s() -> u64 {
    30
}

/// The configuration is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "{field}: must be 1 to {MAX_DEPLOYMENT_NAME} characters of a-z, 0-9 and `-`, without `-` at \
         either end, is `{value}`"
    )]
    Name { field: &'static str, value: String },
    #[error("{0}: must not be empty")]
    Empty(&'static str),
    #[error("shared_pull_secrets: must not contain `{0}`, which the driver creates")]
    SharedPullSecret(String),
    #[error("{0}: must be at least 1, is 0")]
    Overcommit(&'static str),
    #[error("default_runtime_class: must be one of allowed_runtime_classes, is `{0}`")]
    DefaultRuntimeClass(String),
    #[error(transparent)]
    Bound(#[from] BoundError),
}

impl Config {
    /// # Errors
    /// The first value that breaks its rule. No file or cluster is read.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("deployment", &self.deployment),
            ("system_namespace", &self.system_namespace),
        ] {
            let is_name = defaults::is_deployment_name(value) && !value.ends_with('-');
            if !is_name {
                return Err(ConfigError::Name {
                    field,
                    value: value.clone(),
                });
            }
        }
        if self.boxd_image.is_empty() {
            return Err(ConfigError::Empty("boxd_image"));
        }
        // Without it a policy could open the cluster's own network.
        if self.cluster_cidrs.is_empty() {
            return Err(ConfigError::Empty("cluster_cidrs"));
        }
        if let Some(class) = &self.default_runtime_class
            && !is_allowed_runtime_class(class, self.allowed_runtime_classes.as_deref())
        {
            return Err(ConfigError::DefaultRuntimeClass(class.clone()));
        }
        let mut shared = self.shared_pull_secrets.iter();
        if let Some(name) = shared.find(|name| [SECRET, PULL_SECRET].contains(&name.as_str())) {
            return Err(ConfigError::SharedPullSecret(name.clone()));
        }
        // A toleration without a key tolerates every taint.
        if self.allowed_tolerations.iter().any(|t| t.key.is_empty()) {
            return Err(ConfigError::Empty("allowed_tolerations.key"));
        }
        for (field, value) in [
            ("cpu_overcommit", self.cpu_overcommit),
            ("memory_overcommit", self.memory_overcommit),
        ] {
            if value == 0 {
                return Err(ConfigError::Overcommit(field));
            }
        }
        bounds::check_bandwidth(self.network_bandwidth)?;
        bounds::check_connections(self.network_connections)?;
        Ok(())
    }

    pub(crate) fn call_deadline(&self) -> Duration {
        Duration::from_secs(self.call_deadline_s)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn minimal() -> serde_json::Value {
        serde_json::json!({
            "deployment": "eu-1", "boxd_image": "registry.example/boxd:1",
            "cluster_cidrs": ["10.96.0.0/12", "10.244.0.0/16", "192.168.7.0/24"],
        })
    }

    #[test]
    fn required_fields_are_sufficient() {
        let config: Config = serde_json::from_value(minimal()).unwrap();
        config.validate().unwrap();
        assert_eq!(config.system_namespace, "agentbox-system");
        assert!(config.default_allow_internet);
        assert!(config.allowed_node_labels.is_empty() && config.allowed_tolerations.is_empty());
    }

    #[test]
    fn invalid_values_are_refused() {
        for (field, value) in [
            ("deployment", serde_json::json!("a/b")),
            ("deployment", serde_json::json!("")),
            ("system_namespace", serde_json::json!("-a")),
            ("boxd_image", serde_json::json!("")),
            ("cluster_cidrs", serde_json::json!([])),
            ("memory_overcommit", serde_json::json!(0)),
            ("network_bandwidth", serde_json::json!("1k")),
            ("network_connections", serde_json::json!(1)),
            ("allowed_tolerations", serde_json::json!([{ "key": "" }])),
            ("shared_pull_secrets", serde_json::json!(["pull"])),
            ("shared_pull_secrets", serde_json::json!(["boxd"])),
        ] {
            let mut json = minimal();
            json[field] = value.clone();
            let config: Config = serde_json::from_value(json).unwrap();
            assert!(config.validate().is_err(), "{field}={value}");
        }
    }

    #[test]
    fn default_runtime_class_must_be_allowed() {
        for (allowed, is_valid) in [
            (serde_json::Value::Null, true),
            (serde_json::json!(["gvisor"]), true),
            (serde_json::json!(["runc"]), false),
            (serde_json::json!([]), false),
        ] {
            let mut json = minimal();
            json["default_runtime_class"] = "gvisor".into();
            json["allowed_runtime_classes"] = allowed.clone();
            let config: Config = serde_json::from_value(json).unwrap();
            assert_eq!(config.validate().is_ok(), is_valid, "{allowed}");
        }
    }

    #[test]
    fn unknown_field_is_refused() {
        let mut json = minimal();
        json["kubconfig"] = "/x".into();
        assert!(serde_json::from_value::<Config>(json).is_err());
    }
}
