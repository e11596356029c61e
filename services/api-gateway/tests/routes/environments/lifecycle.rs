//! `PATCH` and `DELETE /environments/{id}`, and the ends of an environment.

use std::time::{Duration, Instant};

use agentbox_testing::Runtime;
use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::json;

use super::{ids, instant};
use crate::support::boxes::{script, small};
use crate::support::caller::new_user;
use crate::support::system::runtime;
use crate::support::{eventually, repeat_until_below};

#[tokio::test]
async fn exited_main_command_ends_its_environment() {
    let user = new_user().await;
    let good = user.caller.create(&script("exit 0")).await;
    let bad = user.caller.create(&script("exit 3")).await;
    for (id, status, code) in [(good, "terminated", 0), (bad, "failed", 3)] {
        let ended = user.caller.wait_for_status(&id, status).await;
        assert_eq!(ended["status_reason"], "EXITED");
        assert_eq!(ended["exit_code"], code);
        assert_eq!(ended["command"][0], "sh");
    }
}

#[tokio::test]
async fn missing_image_fails_the_environment_with_its_reason() {
    let user = new_user().await;
    let mut body = small();
    body["image"] = json!("no-such-image-of-ours:1");
    let id = user.caller.create(&body).await;
    let failed = user.caller.wait_for_status(&id, "failed").await;
    assert_eq!(failed["status_reason"], "IMAGE_PULL");
    let why = failed["status_message"].as_str().unwrap();
    assert!(why.contains("no-such-image-of-ours:1"), "{why}");
}

#[tokio::test]
async fn reads_at_once_see_the_last_change_and_only_their_callers_environments() {
    let (owner, stranger) = tokio::join!(new_user(), new_user());
    let changed = owner.caller.create(&small()).await;
    let other = owner.caller.create(&small()).await;
    let path = |id: &str| format!("/environments/{id}");
    let (changed, other, missing) = (path(&changed), path(&other), path("env-0000000000000000"));
    for name in ["first", "second", "third"] {
        let body = json!({"name": name});
        owner.caller.patch(&changed, &body).await.expect_status(200);
        // More than a gateway asks for at once, so that most of them share a request.
        let reads = join_all((0..32).map(async |_| {
            tokio::join!(
                owner.caller.get(&changed),
                owner.caller.get(&other),
                owner.caller.get(&missing),
                stranger.caller.get(&changed),
            )
        }));
        for (changed, other, missing, foreign) in reads.await {
            assert_eq!(changed.expect_status(200)["name"], name);
            assert_eq!(other.expect_status(200)["name"], "box");
            for hidden in [missing, foreign] {
                hidden.expect_error(404, "not_found");
            }
        }
    }
}

#[tokio::test]
async fn patch_changes_the_given_fields_only() {
    let user = new_user().await;
    let mut body = small();
    body["labels"] = json!({"a": "1"});
    let created = user
        .caller
        .post("/environments", &body)
        .await
        .expect_status(201);
    let path = format!("/environments/{}", created["id"].as_str().unwrap());
    let named = user
        .caller
        .patch(&path, &json!({"name": "other"}))
        .await
        .expect_status(200);
    assert_eq!(
        (&named["name"], &named["labels"]),
        (&json!("other"), &json!({"a": "1"}))
    );
    let labelled = user
        .caller
        .patch(&path, &json!({"labels": {"b": "2"}}))
        .await
        .expect_status(200);
    assert_eq!(labelled["labels"], json!({"b": "2"}), "labels are replaced");
    let made = instant(&created["created_at"]);
    for timeout in [7200, 600] {
        let body = json!({"timeout": timeout});
        let patched = user.caller.patch(&path, &body).await.expect_status(200);
        assert_eq!(patched["timeout"], timeout);
        assert_eq!(
            instant(&patched["expires_at"]) - made,
            TimeDelta::seconds(timeout)
        );
    }
    for (body, field) in [
        (json!({}), "body"),
        (json!({"name": "Upper"}), "name"),
        (json!({"timeout": 0}), "timeout"),
        (json!({"labels": {"a b": "c"}}), "labels"),
        (json!({"image": "busybox"}), "image"),
    ] {
        let message = user
            .caller
            .patch(&path, &body)
            .await
            .expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{message}");
    }
    assert_eq!(
        user.caller.get(&path).await.expect_status(200)["name"],
        "other"
    );
}

#[tokio::test]
async fn expired_environment_is_terminated() {
    let user = new_user().await;
    let mut body = small();
    body["timeout"] = json!(2);
    let short = user.caller.create(&body).await;
    let cut = user.caller.create_running(&small()).await;
    let path = format!("/environments/{cut}");
    user.caller
        .patch(&path, &json!({"timeout": 1}))
        .await
        .expect_status(200);
    for id in [short, cut] {
        let ended = user.caller.wait_until_ended(&id).await;
        assert_eq!(ended["status"], "terminated", "{ended}");
        assert_eq!(ended["status_reason"], "EXPIRED");
    }
}

#[tokio::test]
async fn deletion_terminates_the_environment_and_can_be_repeated() {
    let user = new_user().await;
    let id = user.caller.create_running(&small()).await;
    let path = format!("/environments/{id}");
    let answer = user.caller.delete(&format!("{path}?force=false")).await;
    assert_eq!(answer.text, "");
    answer.expect_status(204);
    user.caller.delete(&path).await.expect_status(204);
    let ended = user.caller.wait_for_status(&id, "terminated").await;
    assert_eq!(ended["status_reason"], "DELETED");
    user.caller.delete(&path).await.expect_status(204);
    user.caller
        .patch(&path, &json!({"name": "late"}))
        .await
        .expect_error(409, "conflict");
    assert_eq!(
        ids(&user.caller.get("/environments").await.expect_status(200)),
        [id]
    );
    user.caller
        .delete(&format!("{path}?force=maybe"))
        .await
        .expect_error(400, "validation_failed");
}

#[tokio::test]
async fn forced_deletion_skips_the_grace_period() {
    repeat_until_below(GRACE, force_beside_another).await;
}

/// The default grace period.
const GRACE: Duration = Duration::from_secs(10);

/// Deletes an environment by force in the grace period of another one. Returns how long the other one has
/// been terminating if that has passed, as on a machine that stalls.
async fn force_beside_another() -> Duration {
    let user = new_user().await;
    let stubborn = script("trap '' TERM; echo up; while true; do sleep 0.1; done");
    let forced = user.caller.create_running(&stubborn).await;
    let other = user.caller.create_running(&stubborn).await;
    let other = format!("/environments/{other}");
    let begun = Instant::now();
    user.caller.delete(&other).await.expect_status(204);
    for body in [
        json!({"timeout": 7200}),
        json!({"name": "late"}),
        json!({"labels": {}}),
    ] {
        let message = user
            .caller
            .patch(&other, &body)
            .await
            .expect_error(409, "conflict");
        assert!(message.contains("terminating"), "{message}");
    }
    let path = format!("/environments/{forced}?force=true");
    user.caller.delete(&path).await.expect_status(204);
    user.caller.wait_for_status(&forced, "terminated").await;
    let other = user.caller.get(&other).await.expect_status(200);
    let took = begun.elapsed();
    if other["status"] == "terminating" {
        return Duration::ZERO;
    }
    assert!(took >= GRACE, "after {took:?}: {other}");
    took
}

#[tokio::test]
async fn network_policy_of_a_running_environment_is_changed() {
    let user = new_user().await;
    let id = user.caller.create_running(&small()).await;
    let path = format!("/environments/{id}");
    let policy = json!({
        "allow_internet": false,
        "allowed_egress_cidrs": ["10.20.0.0/16"],
        "allowed_ingress_ports": [8080],
        "allow_cluster_internal": true,
    });
    for _ in 0..2 {
        let body = json!({"network_policy": policy});
        let patched = user.caller.patch(&path, &body).await.expect_status(200);
        assert_eq!(patched["isolation"]["network_policy"], policy);
        match runtime() {
            Runtime::Containerd => assert_eq!(patched["network_policy_applied"], true),
            Runtime::Kubernetes => {
                assert!(patched["network_policy_applied"].is_boolean(), "{patched}");
            }
        }
    }
    let read = user.caller.get(&path).await.expect_status(200);
    assert_eq!(read["isolation"]["network_policy"], policy);
    assert!(read.get("network_policy_applied").is_none(), "{read}");
    let named = user.caller.patch(&path, &json!({"name": "other"})).await;
    let named = named.expect_status(200);
    assert!(named.get("network_policy_applied").is_none(), "{named}");
    for (body, field) in [
        (
            json!({"network_policy": {"allowed_egress_cidrs": ["10.0.0.0/33"]}}),
            "network_policy.allowed_egress_cidrs: ",
        ),
        (
            json!({"network_policy": {"allowed_ingress_ports": [0]}}),
            "network_policy.allowed_ingress_ports: ",
        ),
        (
            json!({"network_policy": {"allow": true}}),
            "network_policy.allow: ",
        ),
    ] {
        let message = user
            .caller
            .patch(&path, &body)
            .await
            .expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{message}");
    }
}

#[tokio::test]
async fn idle_timeout_is_set_changed_and_removed_and_activity_is_recorded() {
    let user = new_user().await;
    let mut body = small();
    body["idle_timeout"] = json!(600);
    let id = user.caller.create_running(&body).await;
    let path = format!("/environments/{id}");
    let created = user.caller.get(&path).await.expect_status(200);
    assert_eq!(created["idle_timeout"], 600);
    assert!(created.get("last_active_at").is_none(), "{created}");
    user.caller.sh(&id, "true").await;
    let active = eventually("the activity is recorded", async || {
        let read = user.caller.get(&path).await.expect_status(200);
        read.get("last_active_at").map(instant)
    })
    .await;
    assert!(active >= instant(&created["started_at"]), "{active}");
    for (value, expected) in [(json!(1200), json!(1200)), (json!(null), json!(null))] {
        let body = json!({"idle_timeout": value});
        let patched = user.caller.patch(&path, &body).await.expect_status(200);
        assert_eq!(patched["idle_timeout"], expected, "{patched}");
    }
    for value in [json!(9), json!(0), json!("60")] {
        let message = user
            .caller
            .patch(&path, &json!({"idle_timeout": value}))
            .await
            .expect_error(400, "validation_failed");
        assert!(message.starts_with("idle_timeout: "), "{message}");
    }
}
