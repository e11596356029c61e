//! The ready boxes of a pool while the parts of an instance are killed and restarted.

use std::collections::BTreeSet;
use std::process::Stdio;

use agentbox_contracts::permissions::PROVISIONER;
use agentbox_testing::{ContainerdEndpoint, Options, System, bin_dir, eventually_some};
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::api::{Api, small};
use crate::claims::{DEADLINE, POOL, create_in_ready_box, define_pool, delete_pool};
use crate::host::leftovers_of_ended;
use crate::kills::kill;
use crate::pod::sandboxes;

/// The ready boxes of the pool.
const BOXES: u64 = 2;

/// Runs the provisioner, which an instance does without, until it has updated the streams. Kills it then.
async fn run_provisioner(system: &System) {
    let nats = system.nats.as_ref().unwrap();
    let mut provisioner = Command::new(bin_dir().join("agentbox-provisioner"))
        .env("AGENTBOX_NATS_URL", &nats.url)
        .env("AGENTBOX_NATS_USER", PROVISIONER)
        .env("AGENTBOX_NATS_PASSWORD", &nats.passwords[PROVISIONER])
        .env("AGENTBOX_ADMIN_LISTEN", "127.0.0.1:0")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(provisioner.stderr.take().unwrap()).lines();
    let started = async {
        while let Some(line) = log.next_line().await.unwrap() {
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            if line["message"] == "started" {
                return true;
            }
        }
        false
    };
    let is_started = tokio::time::timeout(DEADLINE, started).await;
    assert!(is_started.unwrap(), "the provisioner ended");
    provisioner.kill().await.unwrap();
}

/// Kills a part of the instance, and waits until it is restarted and every ready box is to be observed again.
async fn restart(system: &System, part: &str) {
    if part == PROVISIONER {
        run_provisioner(system).await;
        run_provisioner(system).await;
    } else {
        kill(system, part, 0).await;
    }
    // No box is ready by what was known of it before.
    let forget = "UPDATE scheduler.warm_boxes SET seen_at = NULL, due_at = now()";
    let postgres = system.postgres.as_ref().unwrap();
    // Postgres may be the part that starts.
    eventually_some("the rows are changed", DEADLINE, async || {
        postgres.execute(&[forget]).await.ok()
    })
    .await;
}

/// The boxes of the pool, when it has all of them and each is ready.
async fn ready_boxes(
    api: &Api,
    containerd: &ContainerdEndpoint,
    environments: &BTreeSet<String>,
) -> BTreeSet<String> {
    eventually_some("the pool has its boxes", DEADLINE, async || {
        let (code, pool) = api.once(Method::GET, POOL, None).await;
        let status = &pool["status"];
        if code != 200
            || status["ready"] != BOXES
            || status["starting"] != 0
            || status["draining"] != 0
        {
            return None;
        }
        let mut boxes = BTreeSet::from_iter(sandboxes(containerd).await);
        boxes.retain(|id| !environments.contains(id));
        (boxes.len() as u64 == BOXES).then_some(boxes)
    })
    .await
}

#[tokio::test]
async fn restart_of_any_part_keeps_the_ready_boxes_and_they_are_claimed_afterwards() {
    let system = System::start(Options::default().without_rate_limits())
        .await
        .unwrap();
    let api = Api::of(&system).await;
    let containerd = system.containerd.clone().unwrap();
    define_pool(&api, BOXES).await;
    let mut environments = BTreeSet::new();
    for part in ["nats", "postgres", "containerd", "scheduler", PROVISIONER] {
        let before = ready_boxes(&api, &containerd, &environments).await;
        restart(&system, part).await;
        let after = ready_boxes(&api, &containerd, &environments).await;
        assert_eq!(after, before, "{part}");
        let (claimed, created) = create_in_ready_box(&api, POOL, BOXES, &small(part)).await;
        // A machine that stalls may have cost one of them a claim, and the next attempt got a new one.
        let is_of_before = before.contains(claimed["id"].as_str().unwrap());
        assert!(is_of_before || created.len() > 1, "{part}: {claimed}");
        environments.extend(created);
    }
    let last = ready_boxes(&api, &containerd, &environments).await;
    assert!(last.is_disjoint(&environments));
    let (_, pool) = api.served(Method::GET, POOL, None).await;
    assert_eq!(pool["status"]["claims"], environments.len(), "{pool}");
    for id in &environments {
        let running = api.wait_for_status(id, "running").await;
        assert_eq!(running["pool"]["name"], pool["name"], "{running}");
        api.delete(id).await;
    }
    delete_pool(&api, &system).await;
    system.stop().await;
    assert_eq!(leftovers_of_ended(&containerd), Vec::<String>::new());
}
