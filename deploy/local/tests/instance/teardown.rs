//! Nothing is left, however an instance ends.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentbox_local::TestContainerd;

use crate::host::{Supervised, processes_in_boxes, remains};
use crate::pod::Pod;

/// A directory that Postgres' own user may pass through.
fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o711))
        .tempdir()
        .unwrap()
}

#[tokio::test]
async fn an_instance_that_is_stopped_leaves_nothing() {
    let containerd = TestContainerd::start().await.unwrap();
    let endpoint = containerd.endpoint.clone();
    Pod::start(&endpoint, "busybox").await;
    assert!(
        !remains(&endpoint).is_empty(),
        "the search finds nothing at all"
    );
    assert!(!processes_in_boxes(&endpoint).is_empty());
    containerd.system.stop().await;
    assert_eq!(remains(&endpoint), Vec::<String>::new());
    assert_eq!(processes_in_boxes(&endpoint), []);
}

#[tokio::test]
async fn a_test_program_that_is_killed_leaves_nothing() {
    let dir = directory();
    let mut supervised = Supervised::start(dir.path(), None);
    let endpoint = supervised.containerd();
    let processes = supervised.processes();
    Pod::start(&endpoint, "busybox").await;
    supervised.test_program.kill().unwrap();
    supervised.wait();
    assert_eq!(remains(&endpoint), Vec::<String>::new());
    assert_eq!(processes_in_boxes(&endpoint), []);
    assert!(processes.iter().all(|process| !process.is_alive()));
    assert!(!dir.path().join("postgres").exists());
}

/// A cache of its own, so that the next start gets the same place; what is built once
/// is shared.
fn own_cache(below: &Path) -> PathBuf {
    let home = std::env::var("HOME").unwrap();
    let shared = std::env::var("XDG_CACHE_HOME").unwrap_or(format!("{home}/.cache"));
    let own = below.join("cache");
    std::fs::create_dir_all(own.join("agentbox")).unwrap();
    for entry in std::fs::read_dir(Path::new(&shared).join("agentbox")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "test-containerd" {
            symlink(entry.path(), own.join("agentbox").join(entry.file_name())).unwrap();
        }
    }
    own
}

#[tokio::test]
async fn what_a_killed_supervisor_left_is_gone_after_the_next_start_in_its_place() {
    // The shared cache must be filled first.
    TestContainerd::start().await.unwrap().system.stop().await;
    let dir = directory();
    let cache = own_cache(dir.path());
    let mut killed = Supervised::start(dir.path(), Some(&cache));
    let endpoint = killed.containerd();
    let processes = killed.processes();
    Pod::start(&endpoint, "busybox").await;
    killed.supervisor.kill().unwrap();
    killed.wait();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while processes
        .iter()
        .any(agentbox_local::ProcessIdentity::is_alive)
    {
        assert!(
            std::time::Instant::now() < deadline,
            "a child outlived its supervisor"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let boxes = processes_in_boxes(&endpoint);
    assert!(
        !boxes.is_empty(),
        "the box ended by itself: nothing is shown"
    );
    drop(killed);

    let mut next = Supervised::start(dir.path(), Some(&cache));
    assert_eq!(next.containerd().deployment, endpoint.deployment);
    for pid in boxes {
        assert!(!pid.is_alive(), "process {pid:?} is left");
    }
    let listed = Command::new("ctr")
        .args(["--address".as_ref(), endpoint.socket.as_os_str()])
        .args(["--namespace", "k8s.io", "containers", "list", "-q"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "");
    // And the place works: a box starts and ends.
    Pod::start(&next.containerd(), "busybox").await;
    next.test_program.kill().unwrap();
    next.wait();
    assert_eq!(remains(&endpoint), Vec::<String>::new());
}

#[tokio::test]
async fn data_stay_over_a_restart_even_where_postgres_cannot_reach_them_by_itself() {
    // Mode 0700, as a home directory.
    let dir = tempfile::tempdir().unwrap();
    let deployment = format!("local-{:08x}", rand::random::<u32>());
    let query = |supervised: &Supervised, statement: &'static str| {
        let endpoint: agentbox_local::PostgresEndpoint =
            serde_json::from_value(supervised.state()["postgres"].clone()).unwrap();
        async move { endpoint.execute(&[statement]).await.unwrap() }
    };
    let mut first = Supervised::start_lasting(dir.path(), &deployment);
    query(&first, "CREATE TABLE kept AS SELECT 42 AS answer").await;
    first.test_program.kill().unwrap();
    first.wait();
    let mut second = Supervised::start_lasting(dir.path(), &deployment);
    assert_eq!(query(&second, "SELECT answer FROM kept").await.trim(), "42");
    // Also when nobody had the time to clean up.
    second.supervisor.kill().unwrap();
    second.wait();
    drop(second);
    let mut third = Supervised::start_lasting(dir.path(), &deployment);
    assert_eq!(query(&third, "SELECT answer FROM kept").await.trim(), "42");
    let endpoint = third.containerd();
    third.test_program.kill().unwrap();
    third.wait();
    assert_eq!(remains(&endpoint), Vec::<String>::new());
}
