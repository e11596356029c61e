//! The driver's configuration: the `containerd` object of the clusters file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_runtime::bounds::{self, BoundError};
use agentbox_runtime::defaults::{self, MAX_DEPLOYMENT_NAME};
use agentbox_runtime::preflight::is_allowed_runtime_class;
use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

/// The longest name of a Linux interface, without its terminating zero.
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
    /// The records of pulled images, shared by all deployments that use this containerd. They must be
    /// kept as long as its images: an image without a record is every user's. Default: `state_dir`.
    #[serde(default)]
    pub image_records_dir: Option<PathBuf>,
    /// The static boxd on this machine; mounted read-only into every box.
    pub boxd: PathBuf,
    /// The boxes' addresses, as the CNI configuration hands them out.
    pub subnet: Ipv4Net,
    /// The bridge that the CNI configuration names.
    pub bridge: String,
    /// The name of the deployment, which labels its boxes: `[a-z0-9-]`, at most 40 characters.
    pub deployment: String,
    /// The resolvers of boxes. IPv6 addresses are ignored: boxes have no IPv6.
    pub dns_servers: Vec<IpAddr>,

    /// Names the firewall tables, `agentbox-<network>`. Default: `deployment`.
    /// Deployments that share one bridge must share this name: a table drops every packet from
    /// the bridge whose sender it does not contain.
    #[serde(default)]
    pub network: Option<String>,
    /// Labels that a `node_selector` is matched against, beside `kubernetes.io/{os,arch,hostname}`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Public addresses that boxes must not reach either: the operator's own services.
    #[serde(default)]
    pub blocked_egress_cidrs: Vec<IpNet>,
    /// Whether a box without a `network_policy` may reach the public internet. Default true.
    #[serde(default = "defaults::default_allow_internet")]
    pub default_allow_internet: bool,
    /// Bits per second that a box may send, and as many that it may receive: `1M` to `100G`, or
    /// `none`. Default `1G`. Deployments that share one bridge must have the same value.
    #[serde(
        default = "bounds::network_bandwidth",
        deserialize_with = "bounds::quantity_or_none"
    )]
    pub network_bandwidth: Option<u64>,
    /// Open connections of a box in the machine's connection table: 16 or more, or `none`. Default
    /// 4096. Deployments that share one bridge must have the same value.
    #[serde(
        default = "bounds::network_connections",
        deserialize_with = "bounds::quantity_or_none"
    )]
    pub network_connections: Option<u64>,
    /// Bytes per second that a box may read from the disk with the writable layers, and as many that
    /// it may write: `1Mi` to `1Ti`, or `none`. Only on a machine with cgroup v2. Default `none`.
    #[serde(default, deserialize_with = "bounds::quantity_or_none")]
    pub disk_bandwidth: Option<u64>,
    /// The runtime class of a box whose request names none. Absent: the cluster's own default.
    #[serde(default)]
    pub default_runtime_class: Option<String>,
    /// The runtime classes that a request may name. Absent: every class of the cluster.
    #[serde(default)]
    pub allowed_runtime_classes: Option<Vec<String>>,
    /// Whether a box has a user namespace of its own. `true`: a box that cannot have one does not
    /// start; `false`: none has. Absent: each box for which containerd supports it, and `/health`
    /// reports if it supports none.
    #[serde(default)]
    pub user_namespaces: Option<bool>,
    /// Whether the kernel enforces the storage limits of boxes, by a disk for each. `true`: a box that
    /// cannot have one does not start; `false`: storage is measured, and a box over its limit is
    /// ended. Absent: enforced if the machine has what it takes, and `/health` reports if not.
    #[serde(default)]
    pub enforce_storage: Option<bool>,
    /// Free mebibytes of the disk of `state_dir`, below which no box starts and the box that uses most
    /// is ended. Default 2048. 0: no check.
    #[serde(default = "storage_reserve_mib")]
    pub storage_reserve_mib: u64,
    /// Seconds for one image pull. Default 120.
    #[serde(default = "defaults::image_pull_deadline_s")]
    pub image_pull_deadline_s: u64,
    /// Images are removed when their file system is used by this percentage. Default 85.
    #[serde(default = "image_gc_high_percent")]
    pub image_gc_high_percent: u8,
    /// Until it is used by this percentage. Default 80.
    #[serde(default = "image_gc_low_percent")]
    pub image_gc_low_percent: u8,
    /// Seconds for the creation of a sandbox with its network. Default 30.
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

const fn storage_reserve_mib() -> u64 {
    2_048
}
const fn image_gc_high_percent() -> u8 {
    85
}
const fn image_gc_low_percent() -> u8 {
    80
}
const fn sandbox_deadline_s() -> u64 {
    30
}

/// The configuration is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "{field}: must be 1 to {MAX_DEPLOYMENT_NAME} characters of a-z, 0-9 and `-`, without `-` at \
         its start, is `{value}`"
    )]
    Name { field: &'static str, value: String },
    #[error(
        "bridge: must be 1 to {MAX_INTERFACE_NAME} characters of a-z, A-Z, 0-9, `-`, `_` and `.`, is \
         `{0}`"
    )]
    Bridge(String),
    #[error("{field}: must be an absolute path, is `{path}`")]
    RelativePath { field: &'static str, path: PathBuf },
    #[error(
        "image_gc_high_percent: must be at most 100 and above image_gc_low_percent ({low}), is {high}"
    )]
    ImageCollection { high: u8, low: u8 },
    #[error("default_runtime_class: must be one of allowed_runtime_classes, is `{0}`")]
    DefaultRuntimeClass(String),
    #[error(transparent)]
    Bound(#[from] BoundError),
}

impl Config {
    /// # Errors
    /// The first value that breaks its rule. No file is read.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("deployment", self.deployment.as_str()),
            ("network", self.network()),
        ] {
            let is_name = defaults::is_deployment_name(value);
            if !is_name {
                return Err(ConfigError::Name {
                    field,
                    value: value.to_owned(),
                });
            }
        }
        // The name is written into firewall rules, so it must not end a word there.
        let interface = (1..=MAX_INTERFACE_NAME).contains(&self.bridge.len())
            && self
                .bridge
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !interface {
            return Err(ConfigError::Bridge(self.bridge.clone()));
        }
        for (field, path) in [
            ("socket", self.socket.as_path()),
            ("state_dir", self.state_dir.as_path()),
            ("image_records_dir", self.image_records_dir()),
            ("boxd", self.boxd.as_path()),
        ] {
            if !path.is_absolute() {
                return Err(ConfigError::RelativePath {
                    field,
                    path: path.to_owned(),
                });
            }
        }
        let (high, low) = (self.image_gc_high_percent, self.image_gc_low_percent);
        if high > 100 || high <= low {
            return Err(ConfigError::ImageCollection { high, low });
        }
        if let Some(class) = &self.default_runtime_class
            && !is_allowed_runtime_class(class, self.allowed_runtime_classes.as_deref())
        {
            return Err(ConfigError::DefaultRuntimeClass(class.clone()));
        }
        bounds::check_bandwidth(self.network_bandwidth)?;
        bounds::check_connections(self.network_connections)?;
        bounds::check_disk_bandwidth(self.disk_bandwidth)?;
        Ok(())
    }

    #[must_use]
    pub fn network(&self) -> &str {
        self.network.as_deref().unwrap_or(&self.deployment)
    }

    /// The free bytes below which no box starts.
    pub(crate) fn storage_reserve(&self) -> u64 {
        self.storage_reserve_mib.saturating_mul(1 << 20)
    }

    pub(crate) fn image_records_dir(&self) -> &Path {
        self.image_records_dir.as_deref().unwrap_or(&self.state_dir)
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
    fn required_fields_are_sufficient() {
        let config: Config = serde_json::from_value(minimal()).unwrap();
        config.validate().unwrap();
        assert_eq!(config.network(), "local-1");
        assert_eq!(config.image_pull_deadline_s, 120);
        assert!(config.default_allow_internet);
        assert_eq!(config.storage_reserve(), 2 << 30);
        assert_eq!(
            (config.user_namespaces, config.enforce_storage),
            (None, None)
        );
        assert_eq!(config.network_bandwidth, Some(1_000_000_000));
        assert_eq!(config.network_connections, Some(4_096));
        assert_eq!(config.disk_bandwidth, None);
    }

    #[test]
    fn unsafe_name_or_relative_path_is_refused() {
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
    fn watermarks_of_images_are_in_order() {
        for (high, low, is_valid) in [
            (85, 80, true),
            (1, 0, true),
            (80, 80, false),
            (101, 1, false),
        ] {
            let mut json = minimal();
            json["image_gc_high_percent"] = high.into();
            json["image_gc_low_percent"] = low.into();
            let config: Config = serde_json::from_value(json).unwrap();
            assert_eq!(config.validate().is_ok(), is_valid, "{high} {low}");
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
    fn bound_is_read_and_checked() {
        for (field, value, is_valid) in [
            ("network_bandwidth", serde_json::json!("100M"), true),
            ("network_bandwidth", serde_json::json!("none"), true),
            ("network_bandwidth", serde_json::json!("1k"), false),
            ("disk_bandwidth", serde_json::json!("50Mi"), true),
            ("disk_bandwidth", serde_json::json!("50k"), false),
            ("network_connections", serde_json::json!(64), true),
            ("network_connections", serde_json::json!("none"), true),
            ("network_connections", serde_json::json!(0), false),
        ] {
            let mut json = minimal();
            json[field] = value.clone();
            let config: Config = serde_json::from_value(json).unwrap();
            assert_eq!(config.validate().is_ok(), is_valid, "{field}={value}");
        }
    }

    #[test]
    fn unknown_field_is_refused() {
        let mut json = minimal();
        json["sokcet"] = "/x".into();
        assert!(serde_json::from_value::<Config>(json).is_err());
    }
}
