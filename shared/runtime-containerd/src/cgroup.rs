//! The control group above a box's containers, where the pids limit lives.
//!
//! CRI has no field for it in containerd 1.6, so the driver makes the group that the
//! sandbox and its container become children of, and limits that; the kernel counts
//! hierarchically. With cgroup v1 the group exists in each hierarchy (runc makes the
//! others); with v2 there is one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;

const ROOT: &str = "/sys/fs/cgroup";

/// The pause process is one more than the user's.
const OURS: u64 = 1;
/// runc's own start-up inside the group needs some threads.
const FLOOR: u64 = 16;

/// As CRI's `cgroup_parent` wants it (with the cgroupfs driver).
pub fn parent(deployment: &str, id: &EnvironmentId) -> String {
    format!("/agentbox-{deployment}/{id}")
}

/// What is written as the limit.
pub fn limit(pids: u32) -> u64 {
    u64::from(pids).max(FLOOR) + OURS
}

fn is_unified(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

/// Makes the group with its limit in force. Again: the limit is set again.
///
/// # Errors
/// When the pids controller is not there or not writable: then no box may start.
pub fn create(deployment: &str, id: &EnvironmentId, pids: u32) -> io::Result<()> {
    let root = Path::new(ROOT);
    let (hierarchy, unified) = if is_unified(root) {
        (root.to_owned(), true)
    } else {
        (root.join("pids"), false)
    };
    let all = hierarchy.join(format!("agentbox-{deployment}"));
    let group = all.join(id.as_str());
    if unified {
        fs::create_dir_all(&all)?;
        for above in [&hierarchy, &all] {
            fs::write(above.join("cgroup.subtree_control"), "+pids +memory +cpu")?;
        }
    }
    // Another box's removal may take the empty directory above away in between.
    let mut attempts = 0;
    while let Err(error) = fs::create_dir_all(&group) {
        attempts += 1;
        if error.kind() != io::ErrorKind::NotFound || attempts > 10 {
            return Err(error);
        }
    }
    fs::write(group.join("pids.max"), limit(pids).to_string())
}

/// Removes the group from every hierarchy, and the deployment's when it was the last.
/// What is not there is not an error.
///
/// # Errors
/// When something still runs in it after `within`.
pub async fn remove(deployment: &str, id: &EnvironmentId, within: Duration) -> io::Result<()> {
    let deadline = tokio::time::Instant::now() + within;
    for hierarchy in hierarchies()? {
        let all = hierarchy.join(format!("agentbox-{deployment}"));
        let group = all.join(id.as_str());
        // The kernel is done with a dead process's group a little after its exit.
        while let Err(error) = remove_tree(&group) {
            if tokio::time::Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Not empty while other boxes are there.
        let _ = fs::remove_dir(&all);
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
        // `cpu -> cpu,cpuacct` and the like are links to what is listed anyway.
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Groups are removed from the leaves up; their files are not removed at all.
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

/// Where the pids limit is, and with it every process of every box.
fn of_pids() -> PathBuf {
    let root = PathBuf::from(ROOT);
    if is_unified(&root) {
        root
    } else {
        root.join("pids")
    }
}

/// Every process of a box, pause too. One that begins meanwhile may be missing.
pub fn processes(deployment: &str, id: &EnvironmentId) -> Vec<u32> {
    let mut found = Vec::new();
    let mut pending = vec![
        of_pids()
            .join(format!("agentbox-{deployment}"))
            .join(id.as_str()),
    ];
    while let Some(group) = pending.pop() {
        let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        found.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
        let below = fs::read_dir(&group).into_iter().flatten().flatten();
        pending.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found
}

/// Boxes that have a group here.
pub fn boxes(deployment: &str) -> Vec<EnvironmentId> {
    let Ok(entries) = fs::read_dir(of_pids().join(format!("agentbox-{deployment}"))) else {
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
    fn the_limit_leaves_room_for_pause_and_for_starting() {
        for (asked, written) in [(1, 17), (16, 17), (64, 65), (1024, 1025)] {
            assert_eq!(limit(asked), written, "{asked}");
        }
    }

    #[tokio::test]
    async fn a_group_is_made_with_its_limit_and_removed_with_its_parent() {
        let id = EnvironmentId::random();
        let deployment = format!("cgroup-test-{}", std::process::id());
        create(&deployment, &id, 32).unwrap();
        create(&deployment, &id, 48).unwrap();
        assert_eq!(boxes(&deployment), std::slice::from_ref(&id));
        remove(&deployment, &id, Duration::from_secs(5))
            .await
            .unwrap();
        remove(&deployment, &id, Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(boxes(&deployment), []);
        for hierarchy in hierarchies().unwrap() {
            assert!(!hierarchy.join(format!("agentbox-{deployment}")).exists());
        }
    }
}
