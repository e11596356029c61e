//! `/clusters`. Only a test with a system of its own cordons its cluster.

use agentbox_testing::System;
use serde_json::{Value, json};

use crate::support::boxes::small;
use crate::support::caller::{Caller, admin, admin_of, new_user};
use crate::support::eventually;
use crate::support::system::{options, unlimited};

/// Creates that are refused in a row when every scheduler knows of a cordon.
const REFUSALS: usize = 8;

#[tokio::test]
async fn administrator_lists_clusters_with_their_state_and_capacity() {
    let admin = admin().await;
    // On a machine that stalls a cluster may not answer for a moment.
    let listed = eventually("the cluster is connected", async || {
        let listed = admin.get("/clusters?limit=1").await.expect_status(200);
        (listed["clusters"][0]["connected"] == true).then_some(listed)
    })
    .await;
    assert!(listed["total"].as_u64().unwrap() >= 1, "{listed}");
    assert_eq!(listed["limit"], 1, "{listed}");
    let cluster = &listed["clusters"][0];
    assert_eq!(cluster["state"], "active", "{cluster}");
    assert!(
        cluster["capacity"]["nodes"].as_u64().unwrap() >= 1,
        "{cluster}"
    );
    assert!(cluster["environments"]["running"].is_u64(), "{cluster}");
    assert!(cluster.get("drain_deadline").is_none(), "{cluster}");
}

#[tokio::test]
async fn other_callers_may_neither_see_nor_drain_clusters() {
    let user = new_user().await;
    let refused = user.caller.get("/clusters").await;
    refused.expect_error(403, "forbidden");
    for verb in ["cordon", "uncordon", "drain"] {
        let path = format!("/clusters/elsewhere/{verb}");
        let refused = user.caller.post(&path, &json!({})).await;
        refused.expect_error(403, "forbidden");
    }
}

#[tokio::test]
async fn unknown_cluster_returns_404_and_invalid_timeout_400() {
    let admin = admin().await;
    let empty = json!({});
    for verb in ["cordon", "uncordon", "drain"] {
        let path = format!("/clusters/elsewhere/{verb}");
        let refused = admin.post(&path, &empty).await;
        assert_eq!(refused.expect_error(404, "not_found"), "cluster not found");
    }
    for timeout in ["-1", "soon"] {
        let path = format!("/clusters/elsewhere/drain?timeout={timeout}");
        let message = admin.post(&path, &empty).await;
        let message = message.expect_error(400, "validation_failed");
        assert!(message.starts_with("timeout"), "{message}");
    }
}

/// Changes the state of a cluster, and returns the cluster.
async fn change(admin: &Caller, cluster: &str, change: &str) -> Value {
    let path = format!("/clusters/{cluster}/{change}");
    admin.post(&path, &json!({})).await.expect_status(200)
}

/// Waits until creates are refused because of a cordon. Each scheduler reads it within two seconds.
async fn expect_creates_refused(admin: &Caller) {
    eventually("creates are refused", async || {
        for _ in 0..REFUSALS {
            let answer = admin.post("/environments", &small()).await;
            if answer.status != 503 || !answer.text.contains("cordoned") {
                return None;
            }
        }
        Some(())
    })
    .await;
}

#[tokio::test]
async fn cordoned_cluster_takes_no_new_environments_and_a_drain_ends_those_that_it_has() {
    let system = System::start(unlimited(options()).replicas(2))
        .await
        .unwrap();
    let admin = admin_of(&system).await.patient();
    let listed = admin.get("/clusters").await.expect_status(200);
    assert_eq!(listed["total"], 1, "{listed}");
    let name = listed["clusters"][0]["name"].as_str().unwrap();
    let kept = admin.create_running(&small()).await;

    let cordoned = change(&admin, name, "cordon").await;
    assert_eq!(cordoned["state"], "cordoned", "{cordoned}");
    assert_eq!(cordoned["environments"]["running"], 1, "{cordoned}");
    expect_creates_refused(&admin).await;
    assert_eq!(admin.sh(&kept, "echo hi").await["stdout"], "hi\n");
    let active = change(&admin, name, "uncordon").await;
    assert_eq!(active["state"], "active", "{active}");
    admin.create_running(&small()).await;

    let draining = change(&admin, name, "drain?timeout=3600").await;
    assert_eq!(draining["state"], "draining", "{draining}");
    assert!(draining["drain_deadline"].is_string(), "{draining}");
    expect_creates_refused(&admin).await;
    assert_eq!(admin.sh(&kept, "echo hi").await["stdout"], "hi\n");
    change(&admin, name, "drain?timeout=0").await;
    let ended = admin.wait_until_ended(&kept).await;
    assert_eq!(ended["status"], "terminated", "{ended}");
    assert_eq!(ended["status_reason"], "EVICTED", "{ended}");
    eventually("the cluster is drained", async || {
        let listed = admin.get("/clusters").await.expect_status(200);
        let cluster = &listed["clusters"][0];
        let left = json!({"pending": 0, "running": 0, "terminating": 0});
        (cluster["state"] == "drained").then(|| assert_eq!(cluster["environments"], left))
    })
    .await;
    let active = change(&admin, name, "uncordon").await;
    assert_eq!(active["state"], "active", "{active}");
    admin.create_running(&small()).await;

    for (action, count) in [
        ("cordon-cluster", 1),
        ("drain-cluster", 2),
        ("uncordon-cluster", 2),
    ] {
        eventually("the entries of the changes", async || {
            let path = format!("/audit?target={name}&action={action}");
            let trail = admin.get(&path).await.expect_status(200);
            (trail["total"].as_u64() >= Some(count)).then_some(())
        })
        .await;
    }
    system.stop().await;
}
