//! The number of requests that the gateway sends to the scheduler: it waits for notifications
//! instead of polling. These tests have their own system, because they count its requests.

use std::time::Duration;

use agentbox_testing::System;
use serde_json::json;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::{Instant, sleep};

use crate::support::boxes::{kill_box_running, script, small};
use crate::support::caller::{Caller, admin_of};
use crate::support::eventually;
use crate::support::socket::Socket;
use crate::support::sse::Events;
use crate::support::system::{options, unlimited};

/// Sessions in the lost box.
const SESSIONS: usize = 20;
/// How often the gateway may ask without a notification.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);

static COUNTED_SYSTEM: OnceCell<(System, Caller)> = OnceCell::const_new();
/// Held by a test while it counts requests.
static ONE_TEST: Mutex<()> = Mutex::const_new(());

async fn counted_system() -> &'static (System, Caller) {
    COUNTED_SYSTEM
        .get_or_init(async || {
            let system = System::start(unlimited(options())).await.unwrap();
            let admin = admin_of(&system).await;
            (system, admin)
        })
        .await
}

/// How many requests for an environment, or for several, the scheduler has answered.
async fn scheduler_reads(system: &System) -> u64 {
    let admin = system.admin_url("scheduler", 0).unwrap();
    let metrics = reqwest::get(format!("{admin}/metrics")).await.unwrap();
    let text = metrics.text().await.unwrap();
    let is_read = |line: &&str| {
        line.starts_with("agentbox_rpc_server_call_duration_seconds_count{")
            && ["get", "get-many", "resolve"]
                .iter()
                .any(|method| line.contains(&format!("\"scheduler.{method}\"")))
    };
    let count = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
    let sum = text.lines().filter(is_read).map(count).sum();
    assert!(sum > 0, "the scheduler counts requests: {text}");
    sum
}

#[tokio::test]
async fn lost_box_costs_at_most_one_scheduler_request_a_session() {
    let _one_test = ONE_TEST.lock().await;
    let (system, caller) = counted_system().await;
    let id = caller.create_running(&small()).await;
    let mark = format!("5{:06}", rand::random::<u16>());
    let query = format!("tty=false&command=sh&command=-c&command=sleep%20{mark}%3B%20true");
    let mut sockets = Vec::new();
    for _ in 0..SESSIONS {
        let mut socket = Socket::open(caller, &id, &query).await;
        socket.ready().await;
        sockets.push(socket);
    }
    let text = format!("sleep {mark}");
    eventually("it runs", async || {
        caller.has_process(&id, &text).await.then_some(())
    })
    .await;
    let before = scheduler_reads(system).await;
    kill_box_running(&text);
    for mut socket in sockets {
        let output = socket.read_to_end().await;
        assert_eq!(output.close.0, 4502, "{output:?}");
        let error = output.error.unwrap();
        assert!(error.contains("the environment is failed"), "{error}");
    }
    let cost = scheduler_reads(system).await - before;
    assert!(cost <= SESSIONS as u64, "{cost} requests");
}

/// Whether an environment waits for capacity in its cluster.
async fn waits_for_capacity(caller: &Caller, id: &str) -> bool {
    let environment = caller
        .get(&format!("/environments/{id}"))
        .await
        .expect_status(200);
    let message = environment["status_message"].as_str().unwrap_or_default();
    message.starts_with("waiting for capacity")
}

/// Fills the cluster. Returns an environment that runs, and one that waits for capacity and has a
/// command.
async fn full_cluster(caller: &Caller) -> (String, String) {
    let capacity = caller.get("/health").await.expect_status(200)["capacity"].clone();
    let mut idle = small();
    idle["resources"]["cpu"] = capacity["available_cpu"].clone();
    idle["resources"]["memory"] = capacity["available_memory"].clone();
    let running = caller.create_running(&idle).await;
    for _ in 0..64 {
        let id = caller.create(&idle).await;
        if !waits_for_capacity(caller, &id).await {
            continue;
        }
        let path = format!("/environments/{id}?force=true");
        caller.delete(&path).await.expect_status(204);
        let mut body = script("echo started");
        body["resources"] = idle["resources"].clone();
        let pending = caller.create(&body).await;
        assert!(waits_for_capacity(caller, &pending).await);
        return (running, pending);
    }
    panic!("the cluster does not fill up");
}

#[tokio::test]
async fn followed_pending_environment_is_not_polled() {
    let _one_test = ONE_TEST.lock().await;
    let (system, caller) = counted_system().await;
    let (running, pending) = full_cluster(caller).await;
    let before = scheduler_reads(system).await;
    let begun = Instant::now();
    let path = format!("/environments/{pending}/logs?follow=true");
    let mut events = Events::open(caller, &path).await;
    sleep(Duration::from_secs(3)).await;
    // The first request authorizes the caller. The second confirms that the environment is still
    // pending after the gateway began to watch its route.
    let allowed = || 2 + begun.elapsed().as_secs() / RECHECK_INTERVAL.as_secs();
    let cost = scheduler_reads(system).await - before;
    assert!(cost <= allowed(), "{cost} requests while it was pending");

    // Deleting costs one request, for authorization.
    let path = format!("/environments/{running}?force=true");
    caller.delete(&path).await.expect_status(204);
    assert_eq!(events.next().await.unwrap().json()["message"], "started");
    let rest = events.read_to_end().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!(rest[0].json()["status"], json!("terminated"));
    let cost = scheduler_reads(system).await - before;
    // The end costs one request.
    assert!(cost <= allowed() + 2, "{cost} requests until its end");
}

#[tokio::test]
async fn permissions_of_a_key_cost_one_scheduler_request() {
    let _one_test = ONE_TEST.lock().await;
    let (system, caller) = counted_system().await;
    let mut permissions = Vec::new();
    for _ in 0..10 {
        let id = caller.create(&script("exit 0")).await;
        permissions.push(json!({"environment_id": id, "permission": "read"}));
    }
    for permission in &permissions {
        let id = permission["environment_id"].as_str().unwrap();
        caller.wait_until_ended(id).await;
    }
    let before = scheduler_reads(system).await;
    let body = json!({"permissions": permissions});
    let created = caller.post("/api-keys", &body).await.expect_status(201);
    assert_eq!(created["permissions"].as_array().unwrap().len(), 10);
    assert_eq!(scheduler_reads(system).await - before, 1);
}
