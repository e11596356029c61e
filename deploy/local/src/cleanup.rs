//! Removes everything that a cluster leaves on this machine, without its containerd.
//!
//! It runs at the end of every cluster. It also runs before a cluster starts, because a killed
//! cluster may have used the same directory.
//!
//! * I1. It needs only names ([`ClusterPaths`]), may be repeated, and removes nothing of
//!   another cluster.
//! * I2. Deployments that share the cluster's containerd
//!   ([`agentbox_testing::ContainerdEndpoint::another_deployment`]) are removed with it: their
//!   names begin with the cluster's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::ProcessIdentity;
use agentbox_testing::paths::cache_directory;
use agentbox_testing::tool::Tool;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::cluster_paths::{ClusterPaths, postgres_mount};
use crate::control_groups;
use crate::kubernetes::build::Programs;

/// Removes everything of one cluster but its images.
pub(crate) async fn remove(paths: &ClusterPaths) {
    // The daemon first, because it would restart what the next steps kill.
    let configuration = paths.configuration().to_string_lossy().into_owned();
    kill_all(|arguments| is_program(arguments, "containerd") && arguments.contains(&configuration))
        .await;
    let socket = paths.socket().to_string_lossy().into_owned();
    // Shims next: a running shim handles the end of its container as an event.
    kill_all(|arguments| {
        arguments
            .first()
            .is_some_and(|program| program.contains("containerd-shim"))
            && arguments.contains(&socket)
    })
    .await;
    delete_containers(&paths.runc()).await;
    // gVisor's sandboxes are processes with their state directory among the arguments.
    let runsc = paths.runsc().to_string_lossy().into_owned();
    kill_all(|arguments| {
        arguments
            .first()
            .is_some_and(|program| program.starts_with("runsc"))
            && arguments.iter().any(|argument| argument.contains(&runsc))
    })
    .await;
    remove_shim_sockets(&paths.state());
    control_groups::remove(&paths.deployment).await;
    unmount_below(&[&paths.run(), &paths.root, &paths.boxes]);
    crate::network::remove(&paths.deployment).await;
    remove_network_results(&paths.deployment);
    // The run directory last: it marks the deployment as one to clean up ([`crate::slot`]).
    for directory in [paths.boxes.clone(), paths.run()] {
        // Removing recursively would delete the content of a file system still mounted here.
        if mounts_below(&[&directory]).is_empty() {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// Unmounts the data of an instance's Postgres from [`postgres_mount`].
pub(crate) fn unmount_postgres(instance: &str) {
    let mount_point = postgres_mount(instance);
    unmount_below(&[&mount_point]);
    // Not recursively: if it were still mounted, that would delete the data.
    let _ = std::fs::remove_dir(mount_point);
}

fn is_program(arguments: &[String], name: &str) -> bool {
    arguments.first().is_some_and(|program| {
        Path::new(program)
            .file_name()
            .is_some_and(|file| file == name)
    })
}

/// Kills the processes that match and waits until they have exited.
async fn kill_all(matches: impl Fn(&[String]) -> bool) {
    let found: Vec<ProcessIdentity> = ProcessIdentity::all_with_arguments()
        .into_iter()
        .filter(|(_, arguments)| matches(arguments))
        .map(|(identity, _)| identity)
        .collect();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    for identity in found {
        identity.signal(Signal::SIGKILL);
        while identity.is_alive() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Deletes runc's containers: runc kills the processes in each cgroup and removes the cgroup.
async fn delete_containers(runc: &Path) {
    let program = Programs::cached_or_installed(&cache_directory(), "runc", "runc");
    for namespace in directories(runc) {
        for container in directories(&namespace) {
            let Some(id) = container.file_name() else {
                continue;
            };
            let _ = Tool::new(&program)
                .args(["--root".as_ref(), namespace.as_os_str()])
                .args(["delete".as_ref(), "--force".as_ref(), id])
                .run()
                .await;
        }
    }
}

/// Removes the shims' sockets. They are in a directory that all containerds share; the file
/// `address` in each bundle names the bundle's socket.
fn remove_shim_sockets(state: &Path) {
    for namespace in directories(&state.join("io.containerd.runtime.v2.task")) {
        for bundle in directories(&namespace) {
            let address = std::fs::read_to_string(bundle.join("address")).unwrap_or_default();
            if let Some(socket) = address.trim().strip_prefix("unix://") {
                let _ = std::fs::remove_file(socket);
            }
        }
    }
}

/// Removes the CNI library's result files: one per box and network, in one shared directory.
fn remove_network_results(deployment: &str) {
    let prefix = format!("agentbox-{deployment}-");
    let Ok(entries) = std::fs::read_dir("/var/lib/cni/results") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // agentbox-<deployment>-<sandbox>-eth0
        if let Some(rest) = name.strip_prefix(&prefix) {
            let sandbox = rest.split('-').next().unwrap_or_default();
            let loopback = entry
                .path()
                .with_file_name(format!("cni-loopback-{sandbox}-lo"));
            let _ = std::fs::remove_file(loopback);
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn directories(parent: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect()
}

/// The mount points below the directories, the newest first.
pub(crate) fn mounts_below(directories: &[&Path]) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| {
            directories
                .iter()
                .any(|directory| point.starts_with(directory))
        })
        .collect();
    found.reverse();
    found
}

/// Decodes the kernel's octal escapes in a mount point.
fn unescape(point: &str) -> String {
    point
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

pub(crate) fn unmount_below(directories: &[&Path]) {
    for point in mounts_below(directories) {
        let _ = umount2(&point, MntFlags::MNT_DETACH);
    }
}
