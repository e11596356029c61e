//! The files that the cluster's programs read: keys, tokens, kubeconfigs and configurations.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use agentbox_testing::endpoint::kubernetes::{ClusterAddresses, POD_PIDS_LIMIT};
use agentbox_testing::private_file;
use agentbox_testing::tool::{Tool, ToolError};
use serde_json::{Value, json};

use super::api::SYSTEM_NAMESPACE;
use super::build::Programs;
use super::node;
use crate::cluster_paths::ClusterPaths;
use crate::control_groups;
use crate::gvisor;
use crate::image::PAUSE;

pub(crate) const API_PORT: u16 = 6443;

/// The files of one cluster's programs, in the run directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    run: PathBuf,
}

/// A user of the API server.
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) groups: &'static str,
}

pub(crate) const ADMIN: User = User {
    name: "admin",
    groups: "system:masters",
};
/// The services of this machine. [`super::admission`] limits the objects that it changes.
pub(crate) const SERVICES: User = User {
    name: "agentbox-services",
    groups: "system:masters",
};
/// It has the rights of a real kubelet: it reads only the objects that its own Pods need.
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
const METRICS_SERVER: User = User {
    name: "metrics-server",
    groups: "system:masters",
};
const CALICO: User = User {
    name: "calico",
    groups: "system:masters",
};

impl Files {
    pub(crate) fn new(paths: &ClusterPaths) -> Self {
        Self { run: paths.run() }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.run.join(name)
    }

    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.run.join(format!("{user}.kubeconfig"))
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.run.join(format!("certificates/{name}.key"))
    }

    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.run.join(format!("certificates/{name}.crt"))
    }

    /// The administrator's kubeconfig, for tests and for people.
    pub(crate) fn admin(&self) -> PathBuf {
        self.kubeconfig("admin")
    }

    /// Writes all files.
    pub(crate) async fn write(
        &self,
        paths: &ClusterPaths,
        addresses: &ClusterAddresses,
        resolvers: &[IpAddr],
        programs: &Programs,
        refuse_docker_hub: bool,
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
        let text = containerd(paths, self, programs, gvisor.as_deref());
        std::fs::write(paths.configuration(), text).map_err(failed)?;
        if refuse_docker_hub {
            let hub = self.at("certs.d/docker.io");
            std::fs::create_dir_all(&hub).map_err(failed)?;
            // Port 1 refuses connections at once, while requests to Docker Hub would time out.
            std::fs::write(hub.join("hosts.toml"), "server = \"http://127.0.0.1:1\"\n")
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Writes a token for each user into the API server's file and into a kubeconfig.
    fn write_users(&self, addresses: &ClusterAddresses) -> io::Result<()> {
        let mut tokens = String::new();
        for (file, user) in [
            ("admin", ADMIN),
            ("services", SERVICES),
            ("kubelet", KUBELET),
            ("kube-controller-manager", CONTROLLERS),
            ("kube-scheduler", SCHEDULER),
            ("kube-proxy", PROXY),
            ("metrics-server", METRICS_SERVER),
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
                    // The API server's certificate is self-signed; the file contains the authority.
                    "certificate-authority": self.at("certificates/apiserver.crt"),
                }}],
                "users": [{ "name": name, "user": { "token": token } }],
                "contexts": [{ "name": "agentbox", "context":
                    { "cluster": "agentbox", "user": name } }],
                "current-context": "agentbox",
            });
            private_file::write(&self.kubeconfig(file), text.to_string().as_bytes())?;
        }
        private_file::write(&self.at("tokens.csv"), tokens.as_bytes())
    }

    fn write_node(
        &self,
        addresses: &ClusterAddresses,
        paths: &ClusterPaths,
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
            // 0 keeps the machine's table size.
            "conntrack": { "maxPerCore": 0, "min": 0 },
        });
        std::fs::write(self.at("kube-proxy.json"), proxy.to_string())
    }

    fn write_network(&self, paths: &ClusterPaths, addresses: &ClusterAddresses) -> io::Result<()> {
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
                    // A Pod's containers start only when its policy is in force.
                    "policy_setup_timeout_seconds": 5,
                    "endpoint_status_dir": self.at("endpoint-status"),
                },
                { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
                { "type": "bandwidth", "capabilities": { "bandwidth": true } },
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

/// Logs the requests of the services' accounts, without bodies.
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

fn kubelet(addresses: &ClusterAddresses, paths: &ClusterPaths, files: &Files) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // The API server connects to it for logs.
        "address": addresses.node.to_string(),
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        // Only the node itself has access to its network.
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "containerRuntimeEndpoint": format!("unix://{}", paths.socket().display()),
        "podLogsDir": files.at("pods"),
        "resolvConf": files.at("resolv.conf"),
        // The address of CoreDNS, if it is installed.
        "clusterDNS": [addresses.dns().to_string()],
        "clusterDomain": "cluster.local",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", control_groups::name(&paths.deployment)),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "failCgroupV1": false,
        // Without CAP_SYS_RESOURCE a score cannot be lowered.
        "oomScoreAdj": 0,
        "podPidsLimit": POD_PIDS_LIMIT,
        // With cgroup v2 the kubelet's default lets the OOM killer end a whole container.
        "singleProcessOOMKill": true,
        "maxPods": 250,
        "serializeImagePulls": false,
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        // 100 switches garbage collection off: images that were imported cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
    })
}

/// Quotes a path as a TOML basic string, whose escapes are those of JSON.
fn quoted(path: &Path) -> String {
    json!(path.to_string_lossy()).to_string()
}

/// The text of containerd's configuration. `gvisor` is the script that runs gVisor as runc.
fn containerd(
    paths: &ClusterPaths,
    files: &Files,
    programs: &Programs,
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
  # In seconds; a box over its storage limit is detected after that time.
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
  Root = {runc_root}
  BinaryName = {runc}
{gvisor}"#,
        root = quoted(&paths.root),
        state = quoted(&paths.state()),
        socket = quoted(&paths.socket()),
        ttrpc = quoted(&files.at("containerd-ttrpc.sock")),
        opt = quoted(&files.at("opt")),
        pause = PAUSE,
        certs = quoted(&files.at("certs.d")),
        calico = quoted(&programs.bin("calico")),
        cni_conf = quoted(&files.at("cni")),
        runc_root = quoted(&paths.runc()),
        runc = quoted(&programs.bin("runc").join("runc")),
    )
}
