//! An instance leaves nothing on the machine, however it ends.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentbox_testing::{Options, ProcessIdentity, System, TestContainerd};

use crate::api::Api;
use crate::host::{Supervised, leftover_boxes, leftovers, leftovers_of_ended, processes_in_boxes};
use crate::kubernetes::leftovers as kubernetes_leftovers;
use crate::pod::Pod;

/// A directory that the system user of Postgres may traverse.
fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o711))
        .tempdir()
        .unwrap()
}

#[tokio::test]
async fn stopped_instance_leaves_nothing() {
    let containerd = TestContainerd::start().await.unwrap();
    let endpoint = containerd.endpoint.clone();
    Pod::start(&endpoint, "busybox").await;
    assert!(
        !leftovers(&endpoint).is_empty(),
        "the search finds nothing of a running instance"
    );
    let in_boxes = processes_in_boxes(&endpoint);
    assert!(!in_boxes.is_empty());
    containerd.system.stop().await;
    assert_eq!(leftovers_of_ended(&endpoint), Vec::<String>::new());
    assert!(in_boxes.iter().all(|process| !process.is_alive()));
}

#[tokio::test]
async fn killed_test_program_leaves_nothing() {
    let dir = directory();
    let mut supervised = Supervised::start(dir.path(), None);
    let endpoint = supervised.containerd();
    Pod::start(&endpoint, "busybox").await;
    let mut processes = supervised.processes();
    processes.extend(processes_in_boxes(&endpoint));
    supervised.test_program.kill().unwrap();
    supervised.wait();
    assert_eq!(leftovers_of_ended(&endpoint), Vec::<String>::new());
    assert!(processes.iter().all(|process| !process.is_alive()));
    assert!(!dir.path().join("postgres").exists());
}

/// A cache for this test alone, so that the next start gets the same slot. Built images are links
/// to the shared cache.
fn own_cache(below: &Path) -> PathBuf {
    let home = std::env::var("HOME").unwrap();
    let shared = std::env::var("XDG_CACHE_HOME").unwrap_or(format!("{home}/.cache"));
    let own = below.join("cache");
    std::fs::create_dir_all(own.join("agentbox")).unwrap();
    for entry in std::fs::read_dir(Path::new(&shared).join("agentbox")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "test-containerd-2" {
            symlink(entry.path(), own.join("agentbox").join(entry.file_name())).unwrap();
        }
    }
    own
}

/// Kills a supervisor (SIGKILL) and waits for its children, which the kernel signals.
fn kill_supervisor(mut killed: Supervised) {
    let processes = killed.processes();
    killed.supervisor.kill().unwrap();
    killed.wait();
    let deadline = Instant::now() + Duration::from_secs(10);
    while processes.iter().any(ProcessIdentity::is_alive) {
        assert!(Instant::now() < deadline, "a child outlived its supervisor");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until nothing is left. The next start removes it, unless another test's instance removes
/// it at the same time, which may take longer than the next start.
fn wait_until_nothing_is_left(left: impl Fn() -> Vec<String>) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !left().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(left(), Vec::<String>::new());
}

#[tokio::test]
async fn next_start_removes_what_a_killed_supervisor_left() {
    // The shared cache must be filled first.
    TestContainerd::start().await.unwrap().system.stop().await;
    let dir = directory();
    let cache = own_cache(dir.path());
    let killed = Supervised::start_with_services(dir.path(), Some(&cache));
    let endpoint = killed.containerd();
    // A box of the API, and one that the driver does not know.
    let api = killed.api().await;
    let created = api.create("left").await;
    api.wait_for_status(created["id"].as_str().unwrap(), "running")
        .await;
    Pod::start(&endpoint, "busybox").await;
    kill_supervisor(killed);
    let boxes = processes_in_boxes(&endpoint);
    assert!(
        !boxes.is_empty(),
        "the box ended by itself, so the test shows nothing"
    );

    let mut next = Supervised::start(dir.path(), Some(&cache));
    wait_until_nothing_is_left(|| {
        let alive = boxes.iter().filter(|process| process.is_alive());
        alive.map(|process| format!("{process:?}")).collect()
    });
    if next.containerd().deployment == endpoint.deployment {
        assert_eq!(leftover_boxes(&endpoint).await, Vec::<String>::new());
    }
    // The slot can be used again: a box starts.
    Pod::start(&next.containerd(), "busybox").await;
    next.test_program.kill().unwrap();
    next.wait();
    wait_until_nothing_is_left(|| leftovers(&endpoint));
}

#[tokio::test]
async fn start_in_another_slot_removes_what_a_killed_supervisor_left() {
    TestContainerd::start().await.unwrap().system.stop().await;
    let (one, two, three) = (directory(), directory(), directory());
    let elsewhere = directory();
    let cache = own_cache(elsewhere.path());
    let mut first = Supervised::start(one.path(), Some(&cache));
    let second = Supervised::start(two.path(), Some(&cache));
    let left = second.containerd();
    Pod::start(&left, "busybox").await;
    kill_supervisor(second);
    assert!(
        !leftovers(&left).is_empty(),
        "the kill left nothing, so the test shows nothing"
    );
    first.test_program.kill().unwrap();
    first.wait();

    let mut next = Supervised::start(three.path(), Some(&cache));
    assert_ne!(next.containerd().deployment, left.deployment);
    wait_until_nothing_is_left(|| {
        let boxes = processes_in_boxes(&left).into_iter();
        let boxes = boxes.map(|process| format!("{process:?}"));
        leftovers(&left).into_iter().chain(boxes).collect()
    });
    next.test_program.kill().unwrap();
    next.wait();
}

#[tokio::test]
async fn next_start_removes_two_clusters_of_a_killed_supervisor() {
    TestContainerd::start().await.unwrap().system.stop().await;
    let dir = directory();
    let cache = own_cache(dir.path());
    let killed = Supervised::start_both(dir.path(), &cache);
    let (containerd, kubernetes) = (killed.containerd(), killed.kubernetes());
    Pod::start(&containerd, "busybox").await;
    kill_supervisor(killed);
    assert!(!leftovers(&containerd).is_empty() && !kubernetes_leftovers(&kubernetes).is_empty());

    let mut next = Supervised::start_both(dir.path(), &cache);
    next.test_program.kill().unwrap();
    next.wait();
    wait_until_nothing_is_left(|| {
        [leftovers(&containerd), kubernetes_leftovers(&kubernetes)].concat()
    });
}

#[tokio::test]
async fn stopped_system_with_boxes_leaves_nothing() {
    let system = System::start(Options::default()).await.unwrap();
    let endpoint = system.containerd.clone().unwrap();
    let directory = system.directory().to_owned();
    let api = Api::of(&system).await;
    let created = api.create("left").await;
    api.wait_for_status(created["id"].as_str().unwrap(), "running")
        .await;
    let before = leftovers(&endpoint);
    for kind in ["mount", "process", "bridge", "nft", "control group"] {
        assert!(
            before.iter().any(|found| found.starts_with(kind)),
            "the search finds no {kind}: {before:?}"
        );
    }
    let in_boxes = processes_in_boxes(&endpoint);
    system.stop().await;
    assert_eq!(leftovers_of_ended(&endpoint), Vec::<String>::new());
    assert!(in_boxes.iter().all(|process| !process.is_alive()));
    assert!(!directory.exists());
}

#[tokio::test]
async fn restart_keeps_data_in_a_directory_without_access_for_postgres() {
    // With mode 0700, like a home directory.
    let dir = tempfile::tempdir().unwrap();
    let deployment = format!("local-{:08x}", rand::random::<u32>());
    let query = |supervised: &Supervised, statement: &'static str| {
        let endpoint: agentbox_testing::PostgresEndpoint =
            serde_json::from_value(supervised.state()["postgres"].clone()).unwrap();
        async move { endpoint.execute(&[statement]).await.unwrap() }
    };
    let mut first = Supervised::start_durable(dir.path(), &deployment);
    query(&first, "CREATE TABLE kept AS SELECT 42 AS answer").await;
    first.test_program.kill().unwrap();
    first.wait();
    let mut second = Supervised::start_durable(dir.path(), &deployment);
    assert_eq!(query(&second, "SELECT answer FROM kept").await.trim(), "42");
    // Also after a kill, without any clean-up.
    second.supervisor.kill().unwrap();
    second.wait();
    drop(second);
    let mut third = Supervised::start_durable(dir.path(), &deployment);
    assert_eq!(query(&third, "SELECT answer FROM kept").await.trim(), "42");
    let endpoint = third.containerd();
    third.test_program.kill().unwrap();
    third.wait();
    assert_eq!(leftovers(&endpoint), Vec::<String>::new());
    let mount_point = format!("/run/agentbox/{deployment}-postgres");
    assert!(!Path::new(&mount_point).exists());
}
