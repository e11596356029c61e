//! A fork bomb stays within its box.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentbox_runtime::Runtime;

use crate::machine::{config, control_groups, subject};

/// A number in a file of the box's control group; 0 where the hierarchy has no such file.
fn counter(group: &Path, file: &str) -> u64 {
    let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
    // `pids.events` has a word before its number.
    let number = text.split_whitespace().last();
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The number of refused forks in the group and below. Kernels differ in the group that counts
/// them.
fn refusals(group: &Path) -> u64 {
    let below = std::fs::read_dir(group).into_iter().flatten().flatten();
    let below = below.map(|entry| entry.path()).filter(|path| path.is_dir());
    counter(group, "pids.events") + below.map(|group| refusals(&group)).sum::<u64>()
}

#[tokio::test(flavor = "multi_thread")]
async fn fork_bomb_is_limited_and_removed() {
    let (config, s) = (config().await, subject().await);
    // The main command forks only once, because a shell exits at a refused fork.
    let mut spec = s.script("b() { b & b & exec sleep 600; }; b & exec sleep 600");
    spec.resources.pids = 48;
    s.run(&spec).await.unwrap();
    let (deployment, id) = (config.deployment.as_str(), spec.id.as_str());
    let groups = control_groups(deployment, id);
    let group = groups.iter().find(|group| counter(group, "pids.max") > 0);
    let group = group.expect("a group with a limit");
    assert_eq!(counter(group, "pids.max"), 49);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut most = 0;
    while refusals(group) == 0 && tokio::time::Instant::now() < deadline {
        most = most.max(counter(group, "pids.current"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = refusals(group);
    most = most.max(counter(group, "pids.current"));
    s.first.remove(&spec.id).await.unwrap();
    assert!(refused > 0, "no fork was refused: {most} processes");
    assert!(most <= 49, "{most} processes");
    assert_eq!(control_groups(deployment, id), Vec::<PathBuf>::new());
}
