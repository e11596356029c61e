//! The node of a cluster: a network namespace and a mount namespace of this machine.
//!
//! The cluster's programs run in them, with addresses of their own and the usual ports of
//! Kubernetes, so that clusters do not conflict. Links, routes, iptables rules and mounts of the
//! node are in the namespaces and are removed with them.
//!
//! * I1. The namespaces exist while a process runs in them. The first process, the holder, is
//!   stopped with the supervisor.
//! * I2. The node's programs write to the machine's `/run`, `/var/lib` and `/var/log` only below
//!   the instance's own directories.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use agentbox_testing::endpoint::kubernetes::ClusterAddresses;
use agentbox_testing::tool::{Tool, ToolError};
use nix::sys::signal::Signal;

use crate::cluster_paths::ClusterPaths;
use crate::network::node_port;
use crate::process::ProcessSpec;

/// The node's name in the cluster.
pub(crate) const NAME: &str = "node";

/// The holder's script: it sets the mounts up and then sleeps. `$1` is the instance's run
/// directory, `$2` the directory of its images.
const HOLDER_SCRIPT: &str = r#"
set -e
# Without copies of other instances' mounts, which would keep their namespaces alive.
awk '$5 ~ "^/run/" { print $5 }' /proc/self/mountinfo | sort -r | while read -r point; do
  umount --lazy "$point" || true
done
# The directories that the next mounts hide, under other names.
mount -t tmpfs -o mode=755 node /mnt
mkdir /mnt/run /mnt/images /mnt/over
mount --bind "$1" /mnt/run
mount --bind "$2" /mnt/images
for directory in /var/lib /var/log; do
  group=/mnt/over$directory
  mkdir -p "$group/upper" "$group/work"
  mount -t overlay -o "lowerdir=$directory,upperdir=$group/upper,workdir=$group/work" node "$directory"
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

/// The process that holds the node's namespaces; see [`enter`].
pub(crate) fn holder(paths: &ClusterPaths, log: PathBuf) -> ProcessSpec {
    let words: [OsString; 8] = [
        "--mount".into(),
        "--net".into(),
        "--".into(),
        "sh".into(),
        "-c".into(),
        HOLDER_SCRIPT.into(),
        "node".into(),
        paths.run().into(),
    ];
    ProcessSpec {
        name: "node".to_owned(),
        program: "unshare".into(),
        program_override: None,
        environment_file: None,
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

/// Whether the holder has set the mounts up.
pub(crate) fn is_ready(holder: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{holder}/comm")).unwrap_or_default();
    name.trim() == "sleep"
}

/// The arguments of `nsenter` that run a program in the node.
pub(crate) fn enter(holder: u32) -> Vec<OsString> {
    let target = holder.to_string();
    ["--target", &target, "--mount", "--net", "--"]
        .map(OsString::from)
        .to_vec()
}

/// Runs a tool in the node's network.
async fn inside(holder: u32, words: &[&str]) -> Result<(), ToolError> {
    Tool::new("nsenter")
        .args(["--target", &holder.to_string(), "--net", "--"])
        .args(words)
        .run()
        .await
        .map(drop)
}

/// Creates the link between the instance's bridge and the node, with addresses and routes.
pub(crate) async fn connect(
    holder: u32,
    bridge: &str,
    addresses: &ClusterAddresses,
) -> Result<(), ToolError> {
    let port = node_port(bridge);
    let pid = holder.to_string();
    let node = addresses.node.to_string();
    let pods = addresses.pods.to_string();
    let host = |words: &[&str]| Tool::new("ip").args(words).run();
    host(&[
        "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid,
    ])
    .await?;
    host(&["link", "set", &port, "master", bridge, "up"]).await?;
    let own = format!("{node}/{}", addresses.subnet.prefix_len());
    let gateway = addresses.gateway.to_string();
    for words in [
        &["ip", "link", "set", "lo", "up"][..],
        &["ip", "addr", "add", &own, "dev", "eth0"],
        &["ip", "link", "set", "eth0", "up"],
        &["ip", "route", "add", "default", "via", &gateway],
        // Packets to an address without a pod must not follow the default route.
        &["ip", "route", "add", "blackhole", &pods],
        &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"],
        &["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"],
    ] {
        inside(holder, words).await?;
    }
    host(&["route", "add", &pods, "via", &node]).await?;
    Ok(())
}
