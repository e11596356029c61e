//! How each of the cluster's programs is started.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::build::Programs;
use super::configuration::{API_PORT, Files};
use super::node::{self, Addresses};
use super::{measure, registry};
use crate::child::Launch;
use crate::containerd::Paths;
use crate::plan::Layout;
use crate::tool::search_path;

/// Where Felix says on the node's loopback whether it is ready.
pub(crate) const FELIX_PORT: u16 = 9099;

/// The node's containerd among the instance's programs.
pub(crate) const NODE_CONTAINERD: &str = "node-containerd";

/// Everything that the launches are made of.
pub(crate) struct Launches<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) paths: &'a Paths,
    pub(crate) files: &'a Files,
    pub(crate) addresses: &'a Addresses,
    pub(crate) layout: &'a Layout,
    pub(crate) keeper: u32,
}

impl Launches<'_> {
    /// A program of one part, with flags as `--name=value`, in the node.
    fn launch(&self, name: &str, part: &str, flags: Vec<String>) -> Launch {
        let bin = self.programs.bin(part);
        let mut arguments: Vec<OsString> = node::enter(self.keeper);
        arguments.push(bin.join(name).into());
        arguments.extend(flags.into_iter().map(OsString::from));
        Launch {
            name: name.to_owned(),
            program: "nsenter".into(),
            arguments,
            // containerd finds its shim beside itself.
            environment: BTreeMap::from([(
                "PATH".to_owned(),
                format!("{}:{}", bin.display(), search_path()),
            )]),
            user: None,
            stop_signal: Signal::SIGTERM,
            orphan_signal: Signal::SIGKILL,
            grace: Duration::from_secs(5),
            log: self.layout.log(name),
        }
    }

    fn kubeconfig(&self, of: &str) -> String {
        flag("kubeconfig", &self.files.kubeconfig(of))
    }

    pub(crate) fn etcd(&self) -> Launch {
        let data = self.files.at("etcd");
        let flags = vec![
            flag("data-dir", &data),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
            // It ends with the instance: nothing of it is read again.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.launch("etcd", "etcd", flags)
    }

    pub(crate) fn api_server(&self) -> Launch {
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
            // How extensions know it.
            flag(
                "requestheader-client-ca-file",
                &self.files.at("certificates/callers.crt"),
            ),
            format!("--requestheader-allowed-names={}", measure::CALLER),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            flag(
                "proxy-client-cert-file",
                &self.files.at("certificates/caller.crt"),
            ),
            flag(
                "proxy-client-key-file",
                &self.files.at("certificates/caller.key"),
            ),
            flag("audit-policy-file", &self.files.at("audit.json")),
            flag("audit-log-path", &self.files.at("audit.log")),
            // Of a process that ends anyway.
            "--shutdown-delay-duration=0s".to_owned(),
        ];
        let mut launch = self.launch("kube-apiserver", "kubernetes", flags);
        // Its graceful end waits for every open watch.
        launch.stop_signal = Signal::SIGKILL;
        launch
    }

    pub(crate) fn controllers(&self) -> Launch {
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
        self.launch("kube-controller-manager", "kubernetes", flags)
    }

    pub(crate) fn scheduler(&self) -> Launch {
        let flags = vec![
            self.kubeconfig("kube-scheduler"),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            flag("cert-dir", &self.files.at("kube-scheduler")),
        ];
        self.launch("kube-scheduler", "kubernetes", flags)
    }

    pub(crate) fn proxy(&self) -> Launch {
        let flags = vec![flag("config", &self.files.at("kube-proxy.json"))];
        self.launch("kube-proxy", "kubernetes", flags)
    }

    pub(crate) fn felix(&self) -> Launch {
        let mut launch = self.launch("calico-felix", "calico", Vec::new());
        let kubeconfig = self.files.kubeconfig("calico").display().to_string();
        let port = FELIX_PORT.to_string();
        let prefix = self.paths.run().display().to_string();
        let settings = [
            ("KUBECONFIG", kubeconfig.as_str()),
            ("FELIX_DATASTORETYPE", "kubernetes"),
            ("FELIX_FELIXHOSTNAME", node::NAME),
            // Without it a box could talk to the node by its link-local address.
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
        launch.environment.extend(settings);
        launch
    }

    pub(crate) fn containerd(&self) -> Launch {
        let flags = vec![flag("config", &self.paths.configuration())];
        let mut launch = self.launch("containerd", "containerd", flags);
        // This machine may have one of the instance's own beside it.
        launch.name = NODE_CONTAINERD.to_owned();
        launch.log = self.layout.log(NODE_CONTAINERD);
        launch.grace = Duration::from_secs(10);
        launch
    }

    pub(crate) fn kubelet(&self) -> Launch {
        let flags = vec![
            flag("config", &self.files.at("kubelet.json")),
            self.kubeconfig("kubelet"),
            format!("--hostname-override={}", node::NAME),
            format!("--node-ip={}", self.addresses.node),
            flag("root-dir", &self.files.at("kubelet")),
            flag("cert-dir", &self.files.at("kubelet/pki")),
        ];
        self.launch("kubelet", "kubernetes", flags)
    }

    pub(crate) fn metrics_server(&self) -> Launch {
        let kubeconfig = self.files.kubeconfig("metrics-server");
        let flags = vec![
            flag("kubeconfig", &kubeconfig),
            flag("authentication-kubeconfig", &kubeconfig),
            flag("authorization-kubeconfig", &kubeconfig),
            flag("cert-dir", &self.files.at("metrics-server")),
            format!("--bind-address={}", self.addresses.node),
            format!("--secure-port={}", measure::PORT),
            // The kubelet signs its own.
            "--kubelet-insecure-tls".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            // The shortest that it takes, and it must be longer than an answer may take.
            "--metric-resolution=10s".to_owned(),
            "--kubelet-request-timeout=8s".to_owned(),
        ];
        self.launch("metrics-server", "metrics-server", flags)
    }

    pub(crate) fn registry(&self) -> Launch {
        let configuration = registry::configuration(self.files).display().to_string();
        self.launch(
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
