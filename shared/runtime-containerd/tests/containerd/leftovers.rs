//! A removed box leaves nothing on the machine, and other deployments' boxes stay.

use std::time::Duration;

use agentbox_runtime::conformance::{Subject, Violation, check};
use agentbox_runtime::{BoxPhase, Runtime};
use agentbox_runtime_containerd::{Config, Driver};

use crate::machine::{another_config, config, control_groups, host, subject, subject_of};

/// The objects of the machine that name the box or its network.
async fn remains(config: &Config, id: &str, address: &str, port: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(id))
            .map(str::to_owned),
    );
    found.extend(
        control_groups(&config.deployment, id)
            .iter()
            .map(|p| p.display().to_string()),
    );
    for family in ["inet", "bridge"] {
        let table = format!("agentbox-{}", config.network());
        let rules = host("nft", &["list", "table", family, &table])
            .await
            .unwrap();
        let names = |line: &&str| line.contains(id) || line.contains(&format!("{address} "));
        found.extend(rules.lines().filter(names).map(str::to_owned));
    }
    for path in [
        config.state_dir.join(id),
        config.state_dir.join("locks").join(id),
    ] {
        if path.exists() {
            found.push(path.display().to_string());
        }
    }
    if std::path::Path::new("/sys/class/net").join(port).exists() {
        found.push(port.to_owned());
    }
    found
}

fn state_file(config: &Config, id: &str) -> serde_json::Value {
    let path = config.state_dir.join(id).join("facts.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_box_leaves_no_mount_cgroup_rule_file_or_interface() {
    let (config, subject) = (config().await, subject().await);
    let spec = subject.script("dd if=/dev/zero of=/x bs=1M count=1; exec sleep 600");
    subject.run(&spec).await.unwrap();
    let state = state_file(&config, spec.id.as_str());
    let network_field = |key: &str| state["network"][key].as_str().unwrap().to_owned();
    let (address, port) = (network_field("address"), network_field("port"));
    let before = remains(&config, spec.id.as_str(), &address, &port).await;
    assert!(
        before.len() >= 5,
        "the control: a running box has at least five: {before:?}"
    );
    assert!(
        !state.to_string().contains(&spec.boxd_token),
        "the state file contains the token"
    );
    subject.first.remove(&spec.id).await.unwrap();
    assert_eq!(
        remains(&config, spec.id.as_str(), &address, &port).await,
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn box_without_state_file_is_listed_and_removed() {
    let (config, subject) = (config().await, subject().await);
    let outcome = check_without_state_file(&config, &subject).await;
    subject.clean().await.unwrap();
    outcome.unwrap();
}

async fn check_without_state_file(config: &Config, s: &Subject<Driver>) -> Result<(), Violation> {
    let spec = s.spec();
    s.run(&spec).await?;
    let state = state_file(config, spec.id.as_str());
    let network_field = |key: &str| state["network"][key].as_str().unwrap().to_owned();
    let (address, port) = (network_field("address"), network_field("port"));
    std::fs::remove_file(config.state_dir.join(spec.id.as_str()).join("facts.json")).unwrap();
    let listed = s.second.list().await?;
    let is_starting = listed.iter().any(|observed| {
        observed.id == spec.id && matches!(observed.phase, BoxPhase::Starting { .. })
    });
    check(is_starting, || format!("{listed:?}"))?;
    s.second.remove(&spec.id).await?;
    let left = remains(config, spec.id.as_str(), &address, &port).await;
    check(left.is_empty(), || format!("{left:?}"))?;
    // The box can be created again.
    s.run(&spec).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn box_of_another_deployment_is_not_listed_or_changed() {
    let ours = subject().await;
    let theirs = subject_of(&another_config().await);
    let spec = theirs.spec();
    let outcome = check_foreign_box(&ours, &theirs, &spec).await;
    theirs.clean().await.unwrap();
    ours.clean().await.unwrap();
    outcome.unwrap();
}

async fn check_foreign_box(
    ours: &Subject<Driver>,
    theirs: &Subject<Driver>,
    spec: &agentbox_runtime::BoxSpec,
) -> Result<(), Violation> {
    theirs.run(spec).await?;
    // Both deployments have rules in one table, because they share a bridge.
    ours.run(&ours.spec()).await?;
    let seen = ours
        .first
        .list()
        .await?
        .iter()
        .any(|observed| observed.id == spec.id);
    check(!seen, || "a box of another deployment is listed".to_owned())?;
    ours.first.stop(&spec.id, Duration::ZERO).await?;
    ours.first.remove(&spec.id).await?;
    let still = theirs.first.get(&spec.id).await?;
    let running = still
        .as_ref()
        .is_some_and(|o| matches!(o.phase, BoxPhase::Running { .. }));
    check(running, || format!("{still:?}"))
}
