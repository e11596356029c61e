//! The files that containerd reads: its configuration, the boxes' CNI network, and the hosts of
//! registries.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use ipnet::Ipv4Net;
use serde_json::json;

use crate::cluster_paths::ClusterPaths;
use crate::gvisor;
use crate::image::PAUSE;
use crate::network::gateway;

/// Quotes a path as a TOML basic string, whose escapes are those of JSON.
fn quoted(path: &Path) -> String {
    json!(path.to_string_lossy()).to_string()
}

/// The text of containerd's configuration. `gvisor` is the script that runs gVisor as runc.
fn daemon(paths: &ClusterPaths, runc: &Path, gvisor: Option<&Path>) -> String {
    let run = paths.run();
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
  # Nobody asks for the sizes of snapshots.
  stats_collect_period = 86400
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = {certs}
[plugins."io.containerd.cri.v1.runtime"]
  # The default is every second, of every box; boxd and the control groups tell the usage.
  stats_collect_period = "24h"
  stats_retention_period = "24h"
  # Without CAP_SYS_RESOURCE (nested machines) runc cannot lower a score.
  restrict_oom_score_adj = true
  # Network namespaces in the state directory, so that those of one containerd can be found.
  netns_mounts_under_state_dir = true
  # As in Docker: port 80 and ping need no capability inside a box.
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  # The directory of an image's VOLUME is a part of the box's root file system, and of its limit.
  ignore_image_defined_volumes = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [{cni_bin}]
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
        ttrpc = quoted(&run.join("containerd-ttrpc.sock")),
        opt = quoted(&run.join("opt")),
        pause = PAUSE,
        cni_bin = quoted(cni_bin()),
        cni_conf = quoted(&run.join("cni")),
        certs = quoted(&run.join("certs.d")),
        runc_root = quoted(&paths.runc()),
        runc = quoted(runc),
    )
}

/// The directory of the CNI plugins. Debian's package and the upstream archive differ in it.
fn cni_bin() -> &'static Path {
    ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"]
        .map(Path::new)
        .into_iter()
        .find(|directory| directory.join("bridge").is_file())
        .unwrap_or(Path::new("/usr/lib/cni"))
}

pub(super) fn write(
    paths: &ClusterPaths,
    runc: &Path,
    subnet: Ipv4Net,
    bridge: &str,
    refuse_docker_hub: bool,
) -> io::Result<()> {
    let run = paths.run();
    let network = json!({
        "cniVersion": "0.4.0",
        "name": format!("agentbox-{}", paths.deployment),
        "plugins": [{
            "type": "bridge",
            "bridge": bridge,
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": false,
            "ipam": {
                "type": "host-local",
                "dataDir": run.join("addresses"),
                "ranges": [[{ "subnet": subnet, "gateway": gateway(subnet) }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    std::fs::write(run.join("cni/10-boxes.conflist"), network.to_string())?;
    if refuse_docker_hub {
        let hub = run.join("certs.d/docker.io");
        std::fs::create_dir_all(&hub)?;
        // Port 1 refuses connections at once, while requests to Docker Hub would time out.
        std::fs::write(hub.join("hosts.toml"), hosts("http://127.0.0.1:1"))?;
    }
    let script = match gvisor::find() {
        Some(runsc) => Some(gvisor::write_script(paths, &runsc)?),
        None => None,
    };
    std::fs::write(
        paths.configuration(),
        daemon(paths, runc, script.as_deref()),
    )
}

/// The text of a `hosts.toml` that sends the requests of pulls to `url` only. containerd 1.6 ignores a
/// file without a table of hosts, and would then connect to the registry itself. Without the right to
/// push, `url` counts as a mirror and is told the registry.
fn hosts(url: &str) -> String {
    let capabilities = "capabilities = [\"pull\", \"resolve\"]";
    format!("server = \"{url}\"\n{capabilities}\n\n[host.\"{url}\"]\n{capabilities}\n")
}

/// Sends the requests of every pull to the proxy. A registry with a directory of its own in `certs.d`
/// is reached directly.
pub(super) fn write_registry_proxy(
    paths: &ClusterPaths,
    address: Option<SocketAddr>,
) -> io::Result<()> {
    let Some(address) = address else {
        return Ok(());
    };
    let directory = paths.run().join("certs.d/_default");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(
        directory.join("hosts.toml"),
        hosts(&format!("http://{address}")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file_names_one_server_in_both_places() {
        let expected = "server = \"http://127.0.0.1:1\"\n\
            capabilities = [\"pull\", \"resolve\"]\n\n\
            [host.\"http://127.0.0.1:1\"]\n\
            capabilities = [\"pull\", \"resolve\"]\n";
        assert_eq!(hosts("http://127.0.0.1:1"), expected);
    }

    #[test]
    fn path_with_quotes_stays_one_toml_string() {
        assert_eq!(quoted(Path::new("/a \"b\"\\")), r#""/a \"b\"\\""#);
    }
}
