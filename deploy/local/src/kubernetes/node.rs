//! The machine of the cluster's one node: a network namespace and a mount namespace of this
//! one.
//!
//! Everything of the cluster runs in them, on its own addresses and the ports that
//! Kubernetes always has, so clusters do not meet. What the node's programs put
//! into the kernel (links, routes, iptables, mounts) is in a namespace, and gone with it.
//!
//! * I1. The namespaces live as long as a process in them; `keeper` is the first, and ends
//!   with the supervisor.
//! * I2. Nothing that a program of the node writes below `/run`, `/var/lib` and `/var/log`
//!   reaches the machine's: but for the instance's own directories.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::child::Launch;
use crate::containerd::Paths;
use crate::network::{Subnet, node_port};
use crate::tool::{Tool, ToolError};

/// The node's name in the cluster.
pub(crate) const NAME: &str = "node";

/// What the keeper does before it waits: `$1` is the instance's run directory, `$2` that of
/// its images.
const KEEPER: &str = r#"
set -e
# Other instances' mounts are theirs: a copy would keep their namespaces alive.
awk '$5 ~ "^/run/" { print $5 }' /proc/self/mountinfo | sort -r | while read -r point; do
  umount --lazy "$point" || true
done
# What is about to be hidden, by other names.
mount -t tmpfs -o mode=755 node /mnt
mkdir /mnt/run /mnt/images /mnt/over
mount --bind "$1" /mnt/run
mount --bind "$2" /mnt/images
for directory in /var/lib /var/log; do
  layer=/mnt/over$directory
  mkdir -p "$layer/upper" "$layer/work"
  mount -t overlay -o "lowerdir=$directory,upperdir=$layer/upper,workdir=$layer/work" node "$directory"
done
mkdir -p "$2"
mount --bind /mnt/images "$2"
mount -t tmpfs -o mode=755 node /run
mkdir -p "$1" /run/lock /run/netns
mount --bind /mnt/run "$1"
umount /mnt/run /mnt/images
umount --lazy /mnt
exec sleep infinity
"#;

/// The parts of the instance's subnet: the node's own addresses, pods, services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) whole: Subnet,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) node: Ipv4Addr,
    pub(crate) services: Subnet,
    pub(crate) pods: Subnet,
}

impl Addresses {
    /// Of a /20: nodes in the first eighth, services in the second quarter, pods in the
    /// second half.
    pub(crate) fn of(whole: Subnet) -> Self {
        Self {
            whole,
            gateway: whole.gateway(),
            node: whole.host(2),
            services: whole.part(22, 1),
            pods: whole.part(21, 1),
        }
    }

    /// The Service of the cluster's DNS.
    pub(crate) fn dns(&self) -> Ipv4Addr {
        self.services.host(10)
    }
}

/// The keeper's launch; see [`enter`].
pub(crate) fn keeper(paths: &Paths, log: PathBuf) -> Launch {
    let words: [OsString; 8] = [
        "--mount".into(),
        "--net".into(),
        "--".into(),
        "sh".into(),
        "-c".into(),
        KEEPER.into(),
        "node".into(),
        paths.run().into(),
    ];
    Launch {
        name: "node".to_owned(),
        program: "unshare".into(),
        arguments: words
            .into_iter()
            .chain([paths.root.clone().into()])
            .collect(),
        environment: BTreeMap::new(),
        user: None,
        stop_signal: Signal::SIGKILL,
        orphan_signal: Signal::SIGKILL,
        grace: Duration::from_secs(1),
        log,
    }
}

/// Whether the keeper's set-up is done.
pub(crate) fn is_ready(keeper: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{keeper}/comm")).unwrap_or_default();
    name.trim() == "sleep"
}

/// The words before a program's own with which it runs in the node.
pub(crate) fn enter(keeper: u32) -> Vec<OsString> {
    let target = keeper.to_string();
    ["--target", &target, "--mount", "--net", "--"]
        .map(OsString::from)
        .to_vec()
}

/// Runs a tool in the node's network.
async fn inside(keeper: u32, words: &[&str]) -> Result<(), ToolError> {
    Tool::new("nsenter")
        .args(["--target", &keeper.to_string(), "--net", "--"])
        .args(words)
        .run()
        .await
        .map(drop)
}

/// The link between the instance's bridge and the node, its addresses and routes.
pub(crate) async fn connect(
    keeper: u32,
    bridge: &str,
    addresses: &Addresses,
) -> Result<(), ToolError> {
    let port = node_port(bridge);
    let pid = keeper.to_string();
    let node = addresses.node.to_string();
    let pods = addresses.pods.to_string();
    let host = |words: &[&str]| Tool::new("ip").args(words).run();
    host(&[
        "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid,
    ])
    .await?;
    host(&["link", "set", &port, "master", bridge, "up"]).await?;
    let own = format!("{node}/{}", addresses.whole.length());
    let gateway = addresses.gateway.to_string();
    for words in [
        &["ip", "link", "set", "lo", "up"][..],
        &["ip", "addr", "add", &own, "dev", "eth0"],
        &["ip", "link", "set", "eth0", "up"],
        &["ip", "route", "add", "default", "via", &gateway],
        // An address that no pod has must not follow the default route.
        &["ip", "route", "add", "blackhole", &pods],
        &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"],
        &["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"],
    ] {
        inside(keeper, words).await?;
    }
    host(&["route", "add", &pods, "via", &node]).await?;
    Ok(())
}

/// Removes the instance's control groups; what was in them has been killed.
pub(crate) fn remove_control_groups(deployment: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten();
    let hierarchies = hierarchies.map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        remove_tree(&hierarchy.join(control_group(deployment)));
    }
}

/// Below the root of every hierarchy.
pub(crate) fn control_group(deployment: &str) -> String {
    format!("agentbox-{deployment}")
}

/// Makes it in every hierarchy, as the kubelet wants its root.
pub(crate) fn create_control_groups(deployment: &str) -> std::io::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return std::fs::create_dir_all(root.join(control_group(deployment)));
    }
    for entry in std::fs::read_dir(root)?.flatten() {
        // One hierarchy often has a second name: `cpu -> cpu,cpuacct`.
        if entry.file_type()?.is_dir() {
            let group = entry.path().join(control_group(deployment));
            std::fs::create_dir_all(&group)?;
            inherit_cpuset(&entry.path(), &group)?;
        }
    }
    Ok(())
}

/// A new cpuset of version 1 is empty, and nothing can be in it.
fn inherit_cpuset(parent: &Path, group: &Path) -> std::io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if group.join(file).exists() {
            std::fs::write(group.join(file), std::fs::read(parent.join(file))?)?;
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) {
    let below = std::fs::read_dir(group).into_iter().flatten().flatten();
    for entry in below {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_services_and_nodes_share_no_address() {
        let addresses = Addresses::of("10.160.32.0/20".parse().unwrap());
        assert_eq!(addresses.node.to_string(), "10.160.32.2");
        assert_eq!(addresses.services.to_string(), "10.160.36.0/22");
        assert_eq!(addresses.pods.to_string(), "10.160.40.0/21");
    }
}
