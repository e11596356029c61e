//! The control groups of a deployment, on cgroup v1 and v2.
//!
//! containerd removes the group of each container. The groups above it belong to the driver,
//! and that of a Kubernetes to the kubelet; both are removed here, by the deployment's name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_testing::ProcessIdentity;
use nix::sys::signal::Signal;
use tokio::time::Instant;

const ROOT: &str = "/sys/fs/cgroup";
/// The kernel releases the group of a killed process shortly after the process has exited.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(5);

/// The name of a deployment's group in each hierarchy.
pub(crate) fn name(deployment: &str) -> String {
    format!("agentbox-{deployment}")
}

/// Creates the deployment's group in every hierarchy, which the kubelet requires of its root.
pub(crate) fn create(deployment: &str) -> io::Result<()> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return fs::create_dir_all(root.join(name(deployment)));
    }
    for entry in fs::read_dir(root)?.flatten() {
        // A hierarchy often has a second name, which is a link: `cpu -> cpu,cpuacct`.
        if entry.file_type()?.is_dir() {
            let group = entry.path().join(name(deployment));
            fs::create_dir_all(&group)?;
            inherit_cpuset(&entry.path(), &group)?;
        }
    }
    Ok(())
}

/// Copies the parent's cpuset: a new one of version 1 is empty and takes no process.
fn inherit_cpuset(parent: &Path, group: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if group.join(file).exists() {
            fs::write(group.join(file), fs::read(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Removes the deployment's groups and kills the processes in them. A group that cannot be
/// removed in time stays: the next start with the same name tries again.
pub(crate) async fn remove(deployment: &str) {
    let deadline = Instant::now() + REMOVAL_DEADLINE;
    for group in groups_of(deployment) {
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
fn groups_of(deployment: &str) -> Vec<PathBuf> {
    let name = name(deployment);
    let is_own = |group: &PathBuf| {
        group
            .file_name()
            .and_then(|own| own.to_str()?.strip_prefix(&name))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let mut hierarchies = subdirectories(Path::new(ROOT));
    hierarchies.push(ROOT.into());
    hierarchies
        .iter()
        .flat_map(|hierarchy| subdirectories(hierarchy))
        .filter(is_own)
        .collect()
}

/// Directories only: version 1 has links to them for joint controllers.
fn subdirectories(group: &Path) -> Vec<PathBuf> {
    fs::read_dir(group)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes groups from the leaves up; the kernel removes the files in them.
fn remove_tree(group: &Path) -> io::Result<()> {
    for inner in subdirectories(group) {
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
    for inner in subdirectories(group) {
        kill_in(&inner);
    }
}
