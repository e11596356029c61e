//! The private containerd that the tests of this program share, and the machine that it runs on.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;

use agentbox_runtime::conformance::{Subject, accounts};
use agentbox_runtime_containerd::{Config, Driver};
use agentbox_testing::{ContainerdEndpoint, TestContainerd};
use tokio::process::Command;
use tokio::sync::OnceCell;

static CONTAINERD: OnceCell<TestContainerd> = OnceCell::const_new();

async fn containerd() -> &'static TestContainerd {
    CONTAINERD
        .get_or_init(|| async { TestContainerd::start().await.expect("containerd starts") })
        .await
}

/// Longer than a machine stalls: a claim that waits longer for its box fails.
const CONNECT_DEADLINE_MS: u64 = 15_000;

/// The clusters file's `containerd` object, as deploy/local writes it.
pub fn config_of(endpoint: &ContainerdEndpoint) -> Config {
    let mut json = serde_json::to_value(endpoint).expect("an endpoint is JSON");
    json["connect_deadline_ms"] = CONNECT_DEADLINE_MS.into();
    serde_json::from_value(json).expect("the driver reads what deploy/local writes")
}

pub async fn config() -> Config {
    config_of(&containerd().await.endpoint)
}

/// The configuration of another deployment that shares the containerd and its bridge.
pub async fn another_config() -> Config {
    config_of(&containerd().await.endpoint.another_deployment())
}

pub async fn subject() -> Subject<Driver> {
    subject_of(&config().await)
}

/// Imports images of accounts: each name, and its `config` object as JSON.
pub async fn import_accounts(images: Vec<(String, String)>) {
    let imported = containerd().await.import_accounts(&images).await;
    imported.expect("the images can be imported");
}

/// A subject on a containerd with the images of accounts.
pub async fn subject_with_accounts() -> Subject<Driver> {
    static IMPORTED: OnceCell<()> = OnceCell::const_new();
    IMPORTED
        .get_or_init(|| import_accounts(accounts::images()))
        .await;
    subject().await
}

/// A subject whose two drivers have connections of their own, like two processes.
pub fn subject_of(config: &Config) -> Subject<Driver> {
    let driver = || Driver::connect(config.clone()).expect("the configuration is right");
    Subject::new(driver(), driver(), "busybox")
}

/// Runs a command on the machine, and returns its standard output.
pub async fn host(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .env(
            "PATH",
            format!(
                "{}:/usr/sbin:/sbin",
                std::env::var("PATH").unwrap_or_default()
            ),
        )
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{program} {arguments:?}: {}", text(&output.stderr)))
    }
}

/// Reads or deletes the map element that leads a box's packets to its rules.
pub async fn nft_element(verb: &str, config: &Config, address: IpAddr) -> Result<String, String> {
    let table = format!("agentbox-{}", config.network());
    let element = format!("{{ {address} }}");
    let arguments = [verb, "element", "inet", &table, "egress", &element];
    host("nft", &arguments).await
}

/// The directories of a box's control group, in every hierarchy.
pub fn control_groups(deployment: &str, id: &str) -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let below = std::fs::read_dir(&root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    below
        .chain([root.clone()])
        .map(|hierarchy| hierarchy.join(format!("agentbox-{deployment}")).join(id))
        .filter(|group| group.is_dir())
        .collect()
}

/// The process id of a box's boxd, from its control groups.
pub fn boxd_pid(deployment: &str, id: &str) -> u32 {
    let mut pending = control_groups(deployment, id);
    while let Some(group) = pending.pop() {
        let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if command.starts_with(b"boxd\0serve") {
                return pid.parse().expect("a process id is a number");
            }
        }
        let below = std::fs::read_dir(&group).into_iter().flatten().flatten();
        pending.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    panic!("no boxd in the control groups of {id}");
}
