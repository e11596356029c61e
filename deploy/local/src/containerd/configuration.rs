//! The files that containerd reads: its own configuration, the boxes' CNI network, and
//! how registries are reached.

use std::io;
use std::path::Path;

use serde_json::json;

use super::{Containerd, Paths, gvisor};
use crate::network::Subnet;

/// A TOML basic string; what JSON escapes, TOML escapes alike.
fn quoted(path: &Path) -> String {
    json!(path.to_string_lossy()).to_string()
}

/// `gvisor` is what runs as if it were runc, if there is gVisor.
fn daemon(paths: &Paths, gvisor: Option<&Path>) -> String {
    let run = paths.run();
    let gvisor = gvisor.map_or(String::new(), |script| {
        format!(
            r#"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{class}]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{class}.options]
  BinaryName = {script}
  Root = {root}
"#,
            class = gvisor::CLASS,
            script = quoted(script),
            root = quoted(&paths.runsc()),
        )
    });
    format!(
        r#"version = 2
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = {socket}
[plugins."io.containerd.internal.v1.opt"]
  path = {opt}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE (nested machines) runc cannot lower a score.
  restrict_oom_score_adj = true
  # Network namespaces lie under our own directory, so that they can be told apart.
  netns_mounts_under_state_dir = true
  # As Docker does: port 80 and ping need no capability inside a box.
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = {cni_bin}
  conf_dir = {cni_conf}
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = {certs}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  Root = {runc}
{gvisor}"#,
        root = quoted(&paths.root),
        state = quoted(&paths.state()),
        socket = quoted(&paths.socket()),
        opt = quoted(&run.join("opt")),
        pause = Containerd::pause(),
        cni_bin = quoted(cni_bin()),
        cni_conf = quoted(&run.join("cni")),
        certs = quoted(&run.join("certs.d")),
        runc = quoted(&paths.runc()),
    )
}

/// Debian's package and the upstream archive put the plugins in different places.
fn cni_bin() -> &'static Path {
    ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"]
        .map(Path::new)
        .into_iter()
        .find(|directory| directory.join("bridge").is_file())
        .unwrap_or(Path::new("/usr/lib/cni"))
}

pub(super) fn write(
    paths: &Paths,
    subnet: Subnet,
    bridge: &str,
    refuse_hub: bool,
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
                "ranges": [[{ "subnet": subnet, "gateway": subnet.gateway() }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    std::fs::write(run.join("cni/10-boxes.conflist"), network.to_string())?;
    if refuse_hub {
        let hub = run.join("certs.d/docker.io");
        std::fs::create_dir_all(&hub)?;
        // Nothing listens on port 1: refused at once, where the real one is a time-out.
        std::fs::write(hub.join("hosts.toml"), "server = \"http://127.0.0.1:1\"\n")?;
    }
    let script = match gvisor::find() {
        Some(runsc) => Some(gvisor::write_script(paths, &runsc)?),
        None => None,
    };
    std::fs::write(paths.configuration(), daemon(paths, script.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_break_out_of_its_string() {
        assert_eq!(quoted(Path::new("/a \"b\"\\")), r#""/a \"b\"\\""#);
    }
}
