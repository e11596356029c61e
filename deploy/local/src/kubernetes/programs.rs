//! How each program of the cluster is started.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::endpoint::kubernetes::ClusterAddresses;
use agentbox_testing::paths::Layout;
use agentbox_testing::tool::search_path;
use nix::sys::signal::Signal;

use super::build::Programs;
use super::configuration::{API_PORT, Files};
use super::{metrics_server, node, registry};
use crate::cluster_paths::ClusterPaths;
use crate::process::ProcessSpec;

/// The port of Felix's readiness endpoint on the node.
pub(crate) const FELIX_PORT: u16 = 9099;

/// The name of the node's containerd among the instance's processes.
pub(crate) const NODE_CONTAINERD: &str = "node-containerd";

/// The inputs of the programs' specifications.
pub(crate) struct ProgramSpecs<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) paths: &'a ClusterPaths,
    pub(crate) files: &'a Files,
    pub(crate) addresses: &'a ClusterAddresses,
    pub(crate) layout: &'a Layout,
    /// The pid of the process that holds the node's namespaces ([`node`]).
    pub(crate) holder: u32,
}

impl ProgramSpecs<'_> {
    /// A program of one part, run in the node with flags of the form `--name=value`.
    fn program(&self, name: &str, part: &str, flags: Vec<String>) -> ProcessSpec {
        let bin = self.programs.bin(part);
        let mut arguments: Vec<OsString> = node::enter(self.holder);
        arguments.push(bin.join(name).into());
        arguments.extend(flags.into_iter().map(OsString::from));
        ProcessSpec {
            name: name.to_owned(),
            program: "nsenter".into(),
            program_override: None,
            environment_file: None,
            arguments,
            environment: BTreeMap::from([
                // containerd searches its shim on PATH.
                (
                    "PATH".to_owned(),
                    format!("{}:{}", bin.display(), search_path()),
                ),
                // The programs share one machine with the boxes: memory is spent to collect
                // garbage less often than at Go's default of 100.
                ("GOGC".to_owned(), "400".to_owned()),
            ]),
            user: None,
            stop_signal: Signal::SIGTERM,
            orphan_signal: Signal::SIGKILL,
            grace: Duration::from_secs(5),
            log: self.layout.log(name),
        }
    }

    fn kubeconfig(&self, user: &str) -> String {
        flag("kubeconfig", &self.files.kubeconfig(user))
    }

    pub(crate) fn etcd(&self) -> ProcessSpec {
        let data = self.files.at("etcd");
        let flags = vec![
            flag("data-dir", &data),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
            // Its data are not read again after the instance has stopped.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.program("etcd", "etcd", flags)
    }

    pub(crate) fn api_server(&self) -> ProcessSpec {
        let node = self.addresses.node;
        let key = self.files.at("service-accounts.key");
        let flags = vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={node}"),
            format!("--advertise-address={node}"),
            format!("--secure-port={API_PORT}"),
            flag("cert-dir", &self.files.at("certificates")),
            flag("service-account-key-file", &key),
            flag("service-account-signing-key-file", &key),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            flag("token-auth-file", &self.files.at("tokens.csv")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--service-cluster-ip-range={}", self.addresses.services),
            "--allow-privileged=true".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--enable-aggregator-routing=true".to_owned(),
            // How the API server authenticates to its extensions.
            flag(
                "requestheader-client-ca-file",
                &self.files.certificate(metrics_server::CLIENT_CA),
            ),
            format!(
                "--requestheader-allowed-names={}",
                metrics_server::CLIENT_NAME
            ),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            flag(
                "proxy-client-cert-file",
                &self.files.certificate(metrics_server::CLIENT),
            ),
            flag(
                "proxy-client-key-file",
                &self.files.key(metrics_server::CLIENT),
            ),
            flag("audit-policy-file", &self.files.at("audit.json")),
            flag("audit-log-path", &self.files.at("audit.log")),
            // The process is killed instead of stopped: see `stop_signal`.
            "--shutdown-delay-duration=0s".to_owned(),
        ];
        let mut spec = self.program("kube-apiserver", "kubernetes", flags);
        // A graceful stop waits for every open watch.
        spec.stop_signal = Signal::SIGKILL;
        spec
    }

    pub(crate) fn controllers(&self) -> ProcessSpec {
        let flags = vec![
            self.kubeconfig("kube-controller-manager"),
            flag(
                "service-account-private-key-file",
                &self.files.at("service-accounts.key"),
            ),
            flag("root-ca-file", &self.files.at("certificates/apiserver.crt")),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            flag("cert-dir", &self.files.at("kube-controller-manager")),
        ];
        self.program("kube-controller-manager", "kubernetes", flags)
    }

    pub(crate) fn scheduler(&self) -> ProcessSpec {
        let flags = vec![
            self.kubeconfig("kube-scheduler"),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            flag("cert-dir", &self.files.at("kube-scheduler")),
        ];
        self.program("kube-scheduler", "kubernetes", flags)
    }

    pub(crate) fn proxy(&self) -> ProcessSpec {
        let flags = vec![flag("config", &self.files.at("kube-proxy.json"))];
        self.program("kube-proxy", "kubernetes", flags)
    }

    pub(crate) fn felix(&self) -> ProcessSpec {
        let mut spec = self.program("calico-felix", "calico", Vec::new());
        let kubeconfig = self.files.kubeconfig("calico").display().to_string();
        let port = FELIX_PORT.to_string();
        let prefix = self.paths.run().display().to_string();
        let settings = [
            ("KUBECONFIG", kubeconfig.as_str()),
            ("FELIX_DATASTORETYPE", "kubernetes"),
            ("FELIX_FELIXHOSTNAME", node::NAME),
            // Without it a box could connect to the node's link-local address.
            ("FELIX_IPV6SUPPORT", "true"),
            ("FELIX_BPFENABLED", "false"),
            ("FELIX_USAGEREPORTINGENABLED", "false"),
            ("FELIX_DEFAULTENDPOINTTOHOSTACTION", "ACCEPT"),
            ("FELIX_HEALTHENABLED", "true"),
            ("FELIX_HEALTHHOST", "0.0.0.0"),
            ("FELIX_HEALTHPORT", port.as_str()),
            ("FELIX_IPTABLESBACKEND", "NFT"),
            ("FELIX_IPTABLESREFRESHINTERVAL", "10"),
            ("FELIX_ENDPOINTSTATUSPATHPREFIX", prefix.as_str()),
            ("FELIX_LOGFILEPATH", "none"),
            ("FELIX_LOGSEVERITYSYS", "none"),
            ("FELIX_LOGSEVERITYSCREEN", "Warning"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        spec.environment.extend(settings);
        spec
    }

    pub(crate) fn containerd(&self) -> ProcessSpec {
        let flags = vec![flag("config", &self.paths.configuration())];
        let mut spec = self.program("containerd", "containerd", flags);
        // The instance may also run a containerd outside the node.
        spec.name = NODE_CONTAINERD.to_owned();
        spec.log = self.layout.log(NODE_CONTAINERD);
        spec.grace = Duration::from_secs(10);
        spec
    }

    pub(crate) fn kubelet(&self) -> ProcessSpec {
        let flags = vec![
            flag("config", &self.files.at("kubelet.json")),
            self.kubeconfig("kubelet"),
            format!("--hostname-override={}", node::NAME),
            format!("--node-ip={}", self.addresses.node),
            flag("root-dir", &self.files.at("kubelet")),
            flag("cert-dir", &self.files.at("kubelet/pki")),
        ];
        self.program("kubelet", "kubernetes", flags)
    }

    pub(crate) fn metrics_server(&self) -> ProcessSpec {
        let kubeconfig = self.files.kubeconfig("metrics-server");
        let flags = vec![
            flag("kubeconfig", &kubeconfig),
            flag("authentication-kubeconfig", &kubeconfig),
            flag("authorization-kubeconfig", &kubeconfig),
            flag("cert-dir", &self.files.at("metrics-server")),
            format!("--bind-address={}", self.addresses.node),
            format!("--secure-port={}", metrics_server::PORT),
            // The kubelet's certificate is self-signed.
            "--kubelet-insecure-tls".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            // The minimum; it must exceed the request timeout.
            "--metric-resolution=10s".to_owned(),
            "--kubelet-request-timeout=8s".to_owned(),
        ];
        self.program("metrics-server", "metrics-server", flags)
    }

    pub(crate) fn registry(&self) -> ProcessSpec {
        let configuration = registry::configuration(self.files).display().to_string();
        self.program(
            "registry",
            "registry",
            vec!["serve".to_owned(), configuration],
        )
    }

    pub(crate) fn ctr(&self) -> PathBuf {
        self.programs.bin("containerd").join("ctr")
    }
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}
