//! The control groups of a deployment's boxes, on cgroup v1 and v2.
//!
//! containerd removes a container's own group; the groups above it are the driver's, which
//! an instance that ends does not ask box by box.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::identity::ProcessIdentity;

const ROOT: &str = "/sys/fs/cgroup";
/// The kernel is done with a killed process's group a little after its end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills what still runs in them and removes them. One that cannot be removed stays:
/// the next start in the same place tries again.
pub(super) async fn remove(deployment: &str) {
    let deadline = Instant::now() + PATIENCE;
    for group in of_deployment(deployment) {
        while let Err(error) = remove_tree(&group) {
            if error.kind() == io::ErrorKind::NotFound || Instant::now() >= deadline {
                break;
            }
            kill_in(&group);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Groups named `agentbox-<deployment>` or `agentbox-<deployment>-…`, in each hierarchy.
fn of_deployment(deployment: &str) -> Vec<PathBuf> {
    let name = format!("agentbox-{deployment}");
    let is_own = |group: &PathBuf| {
        group
            .file_name()
            .and_then(|own| own.to_str()?.strip_prefix(&name))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let mut hierarchies = below(Path::new(ROOT));
    hierarchies.push(ROOT.into());
    hierarchies
        .iter()
        .flat_map(|hierarchy| below(hierarchy))
        .filter(is_own)
        .collect()
}

/// Directories, and not the links to them that v1 has for joint controllers.
fn below(group: &Path) -> Vec<PathBuf> {
    fs::read_dir(group)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// From the leaves up; a group's files are not removed at all.
fn remove_tree(group: &Path) -> io::Result<()> {
    for inner in below(group) {
        remove_tree(&inner)?;
    }
    fs::remove_dir(group)
}

fn kill_in(group: &Path) {
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|pid| pid.parse().ok()) {
        if let Some(process) = ProcessIdentity::of(pid) {
            process.signal(Signal::SIGKILL);
        }
    }
    for inner in below(group) {
        kill_in(&inner);
    }
}
