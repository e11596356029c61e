//! How an environment is changed and how it ends.

use chrono::TimeDelta;
use serde_json::json;

use super::{ids, instant};
use crate::support::boxes::{script, small};
use crate::support::caller::someone;

#[tokio::test]
async fn the_main_commands_end_is_the_environments() {
    let user = someone().await;
    let good = user.caller.create(&script("exit 0")).await;
    let bad = user.caller.create(&script("exit 3")).await;
    for (id, status, code) in [(good, "terminated", 0), (bad, "failed", 3)] {
        let ended = user.caller.until(&id, status).await;
        assert_eq!(ended["status_reason"], "EXITED");
        assert_eq!(ended["exit_code"], code);
        assert_eq!(ended["command"][0], "sh");
    }
}

#[tokio::test]
async fn an_image_that_is_not_there_fails_the_environment_with_its_reason() {
    let user = someone().await;
    let mut body = small();
    body["image"] = json!("no-such-image-of-ours:1");
    let id = user.caller.create(&body).await;
    let failed = user.caller.until(&id, "failed").await;
    assert_eq!(failed["status_reason"], "IMAGE_PULL");
    let why = failed["status_message"].as_str().unwrap();
    assert!(why.contains("no-such-image-of-ours:1"), "{why}");
}

#[tokio::test]
async fn a_patch_changes_what_it_names_and_nothing_else() {
    let user = someone().await;
    let mut body = small();
    body["labels"] = json!({"a": "1"});
    let created = user.caller.post("/environments", &body).await.is(201);
    let path = format!("/environments/{}", created["id"].as_str().unwrap());
    let named = user
        .caller
        .patch(&path, &json!({"name": "other"}))
        .await
        .is(200);
    assert_eq!(
        (&named["name"], &named["labels"]),
        (&json!("other"), &json!({"a": "1"}))
    );
    let labelled = user
        .caller
        .patch(&path, &json!({"labels": {"b": "2"}}))
        .await
        .is(200);
    assert_eq!(labelled["labels"], json!({"b": "2"}), "labels are replaced");
    let made = instant(&created["created_at"]);
    for timeout in [7200, 600] {
        let body = json!({"timeout": timeout});
        let patched = user.caller.patch(&path, &body).await.is(200);
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
            .is_error(400, "validation_failed");
        assert!(message.starts_with(field), "{message}");
    }
    assert_eq!(user.caller.get(&path).await.is(200)["name"], "other");
}

#[tokio::test]
async fn a_lifetime_that_is_over_ends_the_environment() {
    let user = someone().await;
    let mut body = small();
    body["timeout"] = json!(2);
    let short = user.caller.create(&body).await;
    let cut = user.caller.running(&small()).await;
    let path = format!("/environments/{cut}");
    user.caller
        .patch(&path, &json!({"timeout": 1}))
        .await
        .is(200);
    for id in [short, cut] {
        let ended = user.caller.until_ended(&id).await;
        assert_eq!(ended["status"], "terminated", "{ended}");
        assert_eq!(ended["status_reason"], "EXPIRED");
    }
}

#[tokio::test]
async fn a_deletion_answers_at_once_ends_it_and_may_be_repeated() {
    let user = someone().await;
    let id = user.caller.running(&small()).await;
    let path = format!("/environments/{id}");
    let answer = user.caller.delete(&format!("{path}?force=false")).await;
    assert_eq!(answer.text, "");
    answer.is(204);
    user.caller.delete(&path).await.is(204);
    let ended = user.caller.until(&id, "terminated").await;
    assert_eq!(ended["status_reason"], "DELETED");
    user.caller.delete(&path).await.is(204);
    user.caller
        .patch(&path, &json!({"name": "late"}))
        .await
        .is_error(409, "conflict");
    assert_eq!(ids(&user.caller.get("/environments").await.is(200)), [id]);
    user.caller
        .delete(&format!("{path}?force=maybe"))
        .await
        .is_error(400, "validation_failed");
}

#[tokio::test]
async fn force_skips_the_grace_that_a_stubborn_command_uses_up() {
    let user = someone().await;
    let stubborn = script("trap '' TERM; echo up; while true; do sleep 0.1; done");
    let forced = user.caller.running(&stubborn).await;
    let other = user.caller.running(&stubborn).await;
    let other = format!("/environments/{other}");
    user.caller.delete(&other).await.is(204);
    let path = format!("/environments/{forced}?force=true");
    user.caller.delete(&path).await.is(204);
    user.caller.until(&forced, "terminated").await;
    // Its grace is not over.
    let other = user.caller.get(&other).await.is(200);
    assert_eq!(other["status"], "terminating", "{other}");
}
