//! The files that the cluster's programs read: keys, tokens, how to reach the API server,
//! and each one's own configuration.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::api::SYSTEM_NAMESPACE;
use super::node;
use super::node::Addresses;
use crate::containerd::{Paths, gvisor};
use crate::image::PAUSE;
use crate::secrets::write_private;
use crate::tool::{Tool, ToolError};

pub(crate) const API_PORT: u16 = 6443;
/// Processes of one Pod. Kubernetes has this for a node, not for a Pod.
pub(crate) const PIDS_OF_A_POD: u32 = 128;

/// Where everything is that one cluster's programs read and write.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    run: PathBuf,
}

/// Someone who may ask the API server: name and groups.
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) groups: &'static str,
}

pub(crate) const ADMIN: User = User {
    name: "admin",
    groups: "system:masters",
};
/// As a real one: it reads what its own Pods need, and nothing else.
pub(crate) const KUBELET: User = User {
    name: "system:node:node",
    groups: "system:nodes",
};
const CONTROLLERS: User = User {
    name: "system:kube-controller-manager",
    groups: "system:masters",
};
const SCHEDULER: User = User {
    name: "system:kube-scheduler",
    groups: "",
};
const PROXY: User = User {
    name: "system:kube-proxy",
    groups: "",
};
const MEASURER: User = User {
    name: "metrics-server",
    groups: "system:masters",
};
const CALICO: User = User {
    name: "calico",
    groups: "system:masters",
};

impl Files {
    pub(crate) fn new(paths: &Paths) -> Self {
        Self { run: paths.run() }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.run.join(name)
    }

    pub(crate) fn kubeconfig(&self, of: &str) -> PathBuf {
        self.run.join(format!("{of}.kubeconfig"))
    }

    /// The one for the driver and for people.
    pub(crate) fn admin(&self) -> PathBuf {
        self.kubeconfig("admin")
    }

    /// Writes all of them.
    pub(crate) async fn write(
        &self,
        paths: &Paths,
        addresses: &Addresses,
        resolvers: &[IpAddr],
        network_plugins: &Path,
        refuse_hub: bool,
    ) -> Result<(), WriteError> {
        let failed = |source| WriteError::File {
            path: self.run.clone(),
            source,
        };
        for directory in ["certificates", "cni", "certs.d", "kubelet", "etcd", "pods"] {
            std::fs::create_dir_all(self.at(directory)).map_err(failed)?;
        }
        let key = self.at("service-accounts.key");
        Tool::new("openssl")
            .args([
                "ecparam",
                "-name",
                "prime256v1",
                "-genkey",
                "-noout",
                "-out",
            ])
            .args([&key])
            .run()
            .await?;
        self.write_users(addresses).map_err(failed)?;
        std::fs::write(self.at("audit.json"), audit_policy().to_string()).map_err(failed)?;
        self.write_node(addresses, paths, resolvers)
            .map_err(failed)?;
        self.write_network(paths, addresses).map_err(failed)?;
        let gvisor = match gvisor::find() {
            Some(runsc) => Some(gvisor::write_script(paths, &runsc).map_err(failed)?),
            None => None,
        };
        let text = containerd(paths, self, network_plugins, gvisor.as_deref());
        std::fs::write(paths.configuration(), text).map_err(failed)?;
        if refuse_hub {
            let hub = self.at("certs.d/docker.io");
            std::fs::create_dir_all(&hub).map_err(failed)?;
            // Nothing listens on port 1: refused at once, where the real one is a time-out.
            std::fs::write(hub.join("hosts.toml"), "server = \"http://127.0.0.1:1\"\n")
                .map_err(failed)?;
        }
        Ok(())
    }

    /// A token each, in the API server's file and in a kubeconfig.
    fn write_users(&self, addresses: &Addresses) -> io::Result<()> {
        let mut tokens = String::new();
        for (file, user) in [
            ("admin", ADMIN),
            ("kubelet", KUBELET),
            ("kube-controller-manager", CONTROLLERS),
            ("kube-scheduler", SCHEDULER),
            ("kube-proxy", PROXY),
            ("metrics-server", MEASURER),
            ("calico", CALICO),
        ] {
            let token = hex::encode(rand::random::<[u8; 16]>());
            let name = user.name;
            tokens.push_str(&format!("{token},{name},{name}"));
            if !user.groups.is_empty() {
                tokens.push_str(&format!(",\"{}\"", user.groups));
            }
            tokens.push('\n');
            let text = json!({
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{ "name": "agentbox", "cluster": {
                    "server": format!("https://{}:{API_PORT}", addresses.node),
                    // The API server signs its own; the file has the authority, too.
                    "certificate-authority": self.at("certificates/apiserver.crt"),
                }}],
                "users": [{ "name": name, "user": { "token": token } }],
                "contexts": [{ "name": "agentbox", "context":
                    { "cluster": "agentbox", "user": name } }],
                "current-context": "agentbox",
            });
            write_private(&self.kubeconfig(file), text.to_string().as_bytes())?;
        }
        write_private(&self.at("tokens.csv"), tokens.as_bytes())
    }

    fn write_node(
        &self,
        addresses: &Addresses,
        paths: &Paths,
        resolvers: &[IpAddr],
    ) -> io::Result<()> {
        let names: String = resolvers
            .iter()
            .map(|r| format!("nameserver {r}\n"))
            .collect();
        std::fs::write(self.at("resolv.conf"), names)?;
        let kubelet = kubelet(addresses, paths, self);
        std::fs::write(self.at("kubelet.json"), kubelet.to_string())?;
        let proxy = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": addresses.pods.to_string(),
            "hostnameOverride": node::NAME,
            "healthzBindAddress": "0.0.0.0:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "clientConnection": { "kubeconfig": self.kubeconfig("kube-proxy") },
            // The table's size is the machine's.
            "conntrack": { "maxPerCore": 0, "min": 0 },
        });
        std::fs::write(self.at("kube-proxy.json"), proxy.to_string())
    }

    fn write_network(&self, paths: &Paths, addresses: &Addresses) -> io::Result<()> {
        let network = json!({
            "cniVersion": "0.3.1",
            "name": format!("agentbox-{}", paths.deployment),
            "plugins": [
                {
                    "type": "calico",
                    "datastore_type": "kubernetes",
                    "nodename": node::NAME,
                    "nodename_file_optional": true,
                    "log_level": "warning",
                    "log_file_path": self.at("calico-cni.log"),
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.at("addresses"),
                        "ranges": [[{ "subnet": addresses.pods.to_string() }]],
                    },
                    "policy": { "type": "k8s" },
                    "kubernetes": { "kubeconfig": self.kubeconfig("calico") },
                    // A Pod waits for its policy to be in force.
                    "policy_setup_timeout_seconds": 5,
                    "endpoint_status_dir": self.at("endpoint-status"),
                },
                { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
            ],
        });
        std::fs::write(self.at("cni/10-calico.conflist"), network.to_string())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot write below {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// What our services ask the API server for, without bodies.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {
                "level": "Metadata",
                "userGroups": [format!("system:serviceaccounts:{SYSTEM_NAMESPACE}")],
            },
            { "level": "None" },
        ],
    })
}

fn kubelet(addresses: &Addresses, paths: &Paths, files: &Files) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // The API server dials it for logs.
        "address": addresses.node.to_string(),
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        // Nobody but the node itself reaches its network.
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "containerRuntimeEndpoint": format!("unix://{}", paths.socket().display()),
        "podLogsDir": files.at("pods"),
        "resolvConf": files.at("resolv.conf"),
        // Where a cluster's DNS is, if it is given one.
        "clusterDNS": [addresses.dns().to_string()],
        "clusterDomain": "cluster.local",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node::control_group(&paths.deployment)),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "failCgroupV1": false,
        // Without CAP_SYS_RESOURCE no score can be lowered.
        "oomScoreAdj": 0,
        "podPidsLimit": PIDS_OF_A_POD,
        "maxPods": 250,
        "serializeImagePulls": false,
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        // Nothing is collected: the images are all there are.
        "imageGCHighThresholdPercent": 100,
    })
}

/// A TOML basic string; what JSON escapes, TOML escapes alike.
fn quoted(path: &Path) -> String {
    json!(path.to_string_lossy()).to_string()
}

/// `gvisor` is what runs as if it were runc, if there is gVisor.
fn containerd(
    paths: &Paths,
    files: &Files,
    network_plugins: &Path,
    gvisor: Option<&Path>,
) -> String {
    let gvisor = gvisor.map_or(String::new(), |script| {
        format!(
            r#"[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{class}]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{class}.options]
  BinaryName = {script}
  Root = {root}
"#,
            class = gvisor::CLASS,
            script = quoted(script),
            root = quoted(&paths.runsc()),
        )
    });
    format!(
        r#"version = 3
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.nri.v1.nri",
]
[grpc]
  address = {socket}
[ttrpc]
  address = {ttrpc}
[plugins."io.containerd.internal.v1.opt"]
  path = {opt}
[plugins."io.containerd.cri.v1.images"]
  # How soon a box over its storage limit is seen.
  stats_collect_period = 2
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = {certs}
[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE (nested machines) runc cannot lower a score.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [{calico}, "/usr/lib/cni", "/opt/cni/bin"]
  conf_dir = {cni_conf}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  Root = {runc}
{gvisor}"#,
        root = quoted(&paths.root),
        state = quoted(&paths.state()),
        socket = quoted(&paths.socket()),
        ttrpc = quoted(&files.at("containerd-ttrpc.sock")),
        opt = quoted(&files.at("opt")),
        pause = PAUSE,
        certs = quoted(&files.at("certs.d")),
        calico = quoted(network_plugins),
        cni_conf = quoted(&files.at("cni")),
        runc = quoted(&paths.runc()),
    )
}
