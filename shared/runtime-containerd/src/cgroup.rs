//! The control group above a box's containers. It has the pids limit, the bound of the disk bandwidth,
//! and for a runtime with a kernel of its own the other limits too.
//!
//! CRI has no field for the number of processes in containerd 1.6. The driver therefore creates
//! the parent group of the sandbox and its container, and limits that; the kernel counts
//! hierarchically. gVisor runs a whole box in this group, so that the container's own limits, in a
//! group below, have no effect. With cgroup v1 the group exists in each hierarchy (runc
//! creates the others); with v2 there is one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::disk_bandwidth::DiskBandwidth;

const ROOT: &str = "/sys/fs/cgroup";

/// The period of a CPU quota.
pub const CPU_PERIOD_US: i64 = 100_000;

/// How long the processes of a removed sandbox may take to leave the group.
const EXIT_TIME: Duration = Duration::from_secs(1);

/// The pause process counts too.
const PAUSE_PROCESSES: u64 = 1;
/// The threads that runc needs in the group to start a container.
const MIN_PIDS: u64 = 16;

/// The path for CRI's `cgroup_parent`, in the form of the cgroupfs driver.
pub fn parent(deployment: &str, id: &EnvironmentId) -> String {
    format!("/agentbox-{deployment}/{id}")
}

/// The value of `pids.max`.
pub fn pids_limit(pids: u32) -> u64 {
    u64::from(pids).max(MIN_PIDS) + PAUSE_PROCESSES
}

fn is_unified(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

/// Whether the kernel can bound the disk bandwidth of a group. With v1 it cannot bound buffered
/// writes.
pub fn can_bound_disk_bandwidth() -> bool {
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
    controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == "io"))
}

/// The limits of a box with a kernel of its own, that kernel included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxLimits {
    pub memory_bytes: u64,
    /// Of each [`CPU_PERIOD_US`].
    pub cpu_quota_us: i64,
}

/// Creates the group and sets its limits; an existing group gets the limits.
///
/// # Errors
/// When a controller is missing or not writable: then no box may start.
pub fn create(
    deployment: &str,
    id: &EnvironmentId,
    pids: u32,
    limits: Option<SandboxLimits>,
    bandwidth: &[DiskBandwidth],
) -> io::Result<()> {
    let root = Path::new(ROOT);
    let unified = is_unified(root);
    let below = |controller: &str| {
        let hierarchy = if unified {
            root.to_owned()
        } else {
            root.join(controller)
        };
        hierarchy.join(format!("agentbox-{deployment}"))
    };
    if unified {
        let all = below("");
        fs::create_dir_all(&all)?;
        for above in [root, &all] {
            fs::write(above.join("cgroup.subtree_control"), "+pids +memory +cpu")?;
        }
    }
    let group = make(&below("pids").join(id.as_str()))?;
    fs::write(group.join("pids.max"), pids_limit(pids).to_string())?;
    for disk in bandwidth {
        // The kernel knows disks that it cannot bound.
        if let Err(error) = bound_disk(&group, disk) {
            tracing::warn!(
                error = %ErrorChain(&error),
                environment.id = %id,
                "the disk bandwidth of a box is not bounded"
            );
        }
    }
    let Some(limits) = limits else { return Ok(()) };
    let (memory, quota) = (limits.memory_bytes.to_string(), limits.cpu_quota_us);
    if unified {
        fs::write(group.join("memory.max"), memory)?;
        // Where the machine has no swap accounting there is no swap to limit either.
        write_if_exists(&group.join("memory.swap.max"), "0")?;
        return fs::write(group.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"));
    }
    let group = make(&below("memory").join(id.as_str()))?;
    fs::write(group.join("memory.limit_in_bytes"), &memory)?;
    write_if_exists(&group.join("memory.memsw.limit_in_bytes"), &memory)?;
    let group = make(&below("cpu").join(id.as_str()))?;
    fs::write(group.join("cpu.cfs_period_us"), CPU_PERIOD_US.to_string())?;
    fs::write(group.join("cpu.cfs_quota_us"), quota.to_string())
}

/// Bounds the bandwidth of one disk for a group of cgroup v2.
fn bound_disk(group: &Path, disk: &DiskBandwidth) -> io::Result<()> {
    // From the root down: a group has a controller only if the group above it passes it on.
    for above in [group.ancestors().nth(2), group.parent()]
        .into_iter()
        .flatten()
    {
        fs::write(above.join("cgroup.subtree_control"), "+io")?;
    }
    fs::write(group.join("io.max"), disk.line())
}

fn write_if_exists(file: &Path, value: &str) -> io::Result<()> {
    match fs::OpenOptions::new().write(true).open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => io::Write::write_all(&mut opened?, value.as_bytes()),
    }
}

fn make(group: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(group)?;
    Ok(group.to_owned())
}

/// Whether the group's own memory limit was reached.
///
/// With v1 no counter shows this: kills are counted in the groups below, which are gone by now, and
/// newer kernels do not count failed charges. There the group's peak is compared with its limit.
pub fn memory_limit_was_reached(deployment: &str, id: &EnvironmentId) -> bool {
    /// Memory is charged in batches, so that a charge fails a little below the limit.
    const BATCH_BYTES: u64 = 1 << 20;
    let root = Path::new(ROOT);
    let group = |hierarchy: &Path| {
        hierarchy
            .join(format!("agentbox-{deployment}"))
            .join(id.as_str())
    };
    if is_unified(root) {
        let events = fs::read_to_string(group(root).join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|l| l.strip_prefix("oom_kill "));
        return kills.is_some_and(|kills| kills.trim() != "0");
    }
    let group = group(&root.join("memory"));
    let bytes = |file| -> Option<u64> {
        let text = fs::read_to_string(group.join(file)).ok()?;
        text.trim().parse().ok()
    };
    bytes("memory.max_usage_in_bytes")
        .zip(bytes("memory.limit_in_bytes"))
        .is_some_and(|(peak, limit)| peak.saturating_add(BATCH_BYTES) >= limit)
}

fn groups_below(group: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    below
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Removes the group from every hierarchy; a missing group is not an error. The deployment's group
/// above it stays, because runc may be using it to start another box. The box must have no sandbox: a
/// process that is still in the group after [`EXIT_TIME`] is of a start that was interrupted, and is
/// killed, because containerd does not know it.
///
/// # Errors
/// When a process still runs in it after `within`.
pub async fn remove(deployment: &str, id: &EnvironmentId, within: Duration) -> io::Result<()> {
    let begun = tokio::time::Instant::now();
    for hierarchy in hierarchies()? {
        let group = hierarchy
            .join(format!("agentbox-{deployment}"))
            .join(id.as_str());
        // The kernel releases the group of a process a little after its exit.
        while let Err(error) = remove_tree(&group) {
            if begun.elapsed() >= within {
                return Err(error);
            }
            if begun.elapsed() >= EXIT_TIME {
                kill_processes(&group);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let root = PathBuf::from(ROOT);
    if is_unified(&root) {
        return Ok(vec![root]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&root)? {
        let entry = entry?;
        // Links such as `cpu -> cpu,cpuacct` lead to hierarchies that are listed too.
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes the groups from the leaves up. Their files are the kernel's and go with them.
fn remove_tree(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// The hierarchy with the pids limit, which contains every process of every box.
fn pids_hierarchy() -> PathBuf {
    let root = PathBuf::from(ROOT);
    if is_unified(&root) {
        root
    } else {
        root.join("pids")
    }
}

/// Every process of a box, including pause. A process that starts meanwhile may be missing.
pub fn processes(deployment: &str, id: &EnvironmentId) -> Vec<u32> {
    let group = pids_hierarchy().join(format!("agentbox-{deployment}"));
    processes_below(group.join(id.as_str()))
}

fn kill_processes(group: &Path) {
    for process in processes_below(group.to_owned()) {
        if let Ok(process) = i32::try_from(process) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
}

fn processes_below(group: PathBuf) -> Vec<u32> {
    let mut found = Vec::new();
    let mut pending = vec![group];
    while let Some(group) = pending.pop() {
        let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        found.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
        pending.extend(groups_below(&group));
    }
    found
}

/// The boxes that have a group.
pub fn boxes(deployment: &str) -> Vec<EnvironmentId> {
    let Ok(entries) = fs::read_dir(pids_hierarchy().join(format!("agentbox-{deployment}"))) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_limit_includes_pause_and_startup() {
        for (asked, written) in [(1, 17), (16, 17), (64, 65), (1024, 1025)] {
            assert_eq!(pids_limit(asked), written, "{asked}");
        }
    }

    #[tokio::test]
    async fn cgroup_is_created_with_limits_and_removed() {
        let id = EnvironmentId::random();
        let deployment = format!("cgroup-test-{}", std::process::id());
        create(&deployment, &id, 32, None, &[]).unwrap();
        let limits = SandboxLimits {
            memory_bytes: 64 << 20,
            cpu_quota_us: 50_000,
        };
        // No kernel bounds this one: cgroup v1 no disk at all, and v2 none with these numbers.
        let refused = DiskBandwidth {
            device: "0:0".to_owned(),
            bytes_per_second: 1 << 20,
        };
        create(&deployment, &id, 48, Some(limits), &[refused]).unwrap();
        assert!(!memory_limit_was_reached(&deployment, &id));
        assert_eq!(boxes(&deployment), std::slice::from_ref(&id));
        remove(&deployment, &id, Duration::from_secs(5))
            .await
            .unwrap();
        remove(&deployment, &id, Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(boxes(&deployment), []);
        for hierarchy in hierarchies().unwrap() {
            let all = hierarchy.join(format!("agentbox-{deployment}"));
            assert!(!all.join(id.as_str()).exists());
            let _ = fs::remove_dir(all);
        }
    }

    #[tokio::test]
    async fn process_of_an_interrupted_start_does_not_keep_the_group() {
        let id = EnvironmentId::random();
        let deployment = format!("orphan-test-{}", std::process::id());
        create(&deployment, &id, 32, None, &[]).unwrap();
        let mut orphan = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let all = format!("agentbox-{deployment}");
        for hierarchy in hierarchies().unwrap() {
            let group = hierarchy.join(&all).join(id.as_str());
            if group.exists() {
                fs::write(group.join("cgroup.procs"), orphan.id().to_string()).unwrap();
            }
        }
        let reaped = tokio::task::spawn_blocking(move || orphan.wait());
        remove(&deployment, &id, Duration::from_secs(5))
            .await
            .unwrap();
        assert!(!reaped.await.unwrap().unwrap().success());
        for hierarchy in hierarchies().unwrap() {
            let _ = fs::remove_dir(hierarchy.join(&all));
        }
    }
}
