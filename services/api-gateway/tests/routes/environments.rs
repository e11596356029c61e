//! `/environments`: create, list, get, patch, delete.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::answer::Answer;
use crate::support::boxes::{script, small};
use crate::support::caller::{Caller, send, someone};
use crate::support::eventually;

fn instant(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

fn ids(list: &Value) -> Vec<String> {
    list["environments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|environment| environment["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn what_was_asked_for_is_answered_field_by_field_and_runs() {
    let user = someone().await;
    let mut body = small();
    body["name"] = json!("my-python-env");
    body["timeout"] = json!(1800);
    body["env"] = json!({"MY_VAR": "my-value"});
    body["labels"] = json!({"project": "my-project"});
    body["isolation"] = json!({"network_policy": {"allow_internet": false}});
    let answer = user.caller.post("/environments", &body).await;
    let location = answer.header("location").to_owned();
    let created = answer.is(201);
    let id = created["id"].as_str().unwrap();
    assert!(id.starts_with("env-"));
    assert_eq!(location, format!("/api/v1/environments/{id}"));
    assert_eq!(created["status"], "pending");
    for field in ["name", "image", "resources", "timeout", "env", "labels"] {
        assert_eq!(created[field], body[field], "{field}");
    }
    assert_eq!(created["namespace"], format!("agentbox-{id}"));
    assert!(!created["endpoint"].as_str().unwrap().is_empty());
    assert_eq!(created["owner"], user.id);
    assert_eq!(
        created["isolation"]["network_policy"]["allow_internet"],
        false
    );
    let made = instant(&created["created_at"]);
    assert!((Utc::now() - made).abs() < TimeDelta::seconds(60));
    assert_eq!(
        instant(&created["expires_at"]) - made,
        TimeDelta::seconds(1800)
    );

    let running = user.caller.until(id, "running").await;
    assert!(instant(&running["started_at"]) >= made);
    for field in [
        "id",
        "name",
        "image",
        "created_at",
        "env",
        "labels",
        "namespace",
        "owner",
    ] {
        assert_eq!(running[field], created[field], "{field}");
    }
    let path = format!("/environments/{id}");
    let metrics = eventually("its usage is known", async || {
        let body = user.caller.get(&path).await.is(200);
        body.get("metrics").cloned()
    })
    .await;
    for field in ["cpu_usage", "memory_usage"] {
        assert!(metrics[field].is_string(), "{metrics}");
    }
    let said = user.caller.sh(id, "echo $MY_VAR").await;
    assert_eq!(said["stdout"], "my-value\n");
}

#[tokio::test]
async fn only_name_image_and_resources_are_required() {
    let user = someone().await;
    let created = user.caller.post("/environments", &small()).await.is(201);
    assert_eq!(created["timeout"], 3600, "the default");
    assert_eq!(created["labels"], json!({}));
    assert_eq!(created["env"], json!({}));
    for field in [
        "command",
        "isolation",
        "exit_code",
        "status_reason",
        "metrics",
    ] {
        assert!(created.get(field).is_none(), "{field}: {created}");
    }
    for field in ["name", "image", "resources"] {
        let mut body = small();
        body.as_object_mut().unwrap().remove(field);
        let answer = user.caller.post("/environments", &body).await;
        assert_eq!(
            answer.is_error(400, "validation_failed"),
            format!("{field}: is required")
        );
    }
    for field in ["cpu", "memory", "storage"] {
        let mut body = small();
        body["resources"].as_object_mut().unwrap().remove(field);
        let answer = user.caller.post("/environments", &body).await;
        let expected = format!("resources.{field}: is required");
        assert_eq!(answer.is_error(400, "validation_failed"), expected);
    }
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused_by_field_and_nothing_is_created() {
    let user = someone().await;
    for (field, value) in [
        ("name", json!("")),
        ("name", json!("Upper")),
        ("name", json!("-a")),
        ("name", json!("a".repeat(64))),
        ("name", json!(7)),
        ("image", json!("")),
        ("image", json!("a b")),
        ("timeout", json!(0)),
        ("timeout", json!(-1)),
        ("timeout", json!(1.5)),
        ("timeout", json!("3600")),
        ("env", json!({"A=B": "c"})),
        ("env", json!({"": "c"})),
        ("command", json!([])),
        ("command", json!("sh")),
        ("labels", json!({"agentbox/owner": "me", "bad key": "x"})),
        ("labels", json!({"a": "b c"})),
        ("node_selector", json!({"a": "b c"})),
        ("tolerations", json!({})),
        (
            "isolation",
            json!({"network_policy": {"allowed_egress_cidrs": ["ten"]}}),
        ),
        (
            "isolation",
            json!({"network_policy": {"allowed_ingress_ports": [0]}}),
        ),
        ("isolation", json!({"sandbox": true})),
        ("colour", json!("red")),
    ] {
        let mut body = small();
        body[field] = value.clone();
        let answer = user.caller.post("/environments", &body).await;
        let message = answer.is_error(400, "validation_failed");
        assert!(message.starts_with(field), "{field} {value}: {message}");
    }
    for (field, value) in [
        ("cpu", "much"),
        ("memory", "-1Gi"),
        ("storage", ""),
        ("gpu", "1"),
    ] {
        let mut body = small();
        body["resources"][field] = json!(value);
        let answer = user.caller.post("/environments", &body).await;
        let message = answer.is_error(400, "validation_failed");
        assert!(
            message.starts_with(&format!("resources.{field}: ")),
            "{message}"
        );
    }
    assert_eq!(user.caller.get("/environments").await.is(200)["total"], 0);
}

#[tokio::test]
async fn quantities_come_in_any_of_their_forms_and_are_answered_as_written() {
    let user = someone().await;
    let mut body = small();
    body["resources"] = json!({"cpu": "0.1", "memory": "0.125Gi", "storage": "67108864"});
    let created = user.caller.post("/environments", &body).await.is(201);
    assert_eq!(created["resources"], body["resources"]);
}

async fn create_with(caller: &Caller, gateway: usize, key: &str, body: &Value) -> Answer {
    let request = caller
        .request_on(gateway, Method::POST, "/environments")
        .header("idempotency-key", key)
        .json(body);
    send(request).await
}

#[tokio::test]
async fn an_idempotency_key_gives_the_same_environment_and_another_body_conflicts() {
    let user = someone().await;
    let first = create_with(&user.caller, 0, "k-1", &small()).await.is(201);
    let again = create_with(&user.caller, 1, "k-1", &small()).await.is(201);
    assert_eq!(first["id"], again["id"]);
    let mut other = small();
    other["name"] = json!("another");
    create_with(&user.caller, 0, "k-1", &other)
        .await
        .is_error(409, "idempotency_conflict");
    let next = create_with(&user.caller, 1, "k-2", &small()).await.is(201);
    assert_ne!(first["id"], next["id"]);
    assert_eq!(user.caller.get("/environments").await.is(200)["total"], 2);
    // A key is its user's.
    let other = someone().await;
    let theirs = create_with(&other.caller, 0, "k-1", &small()).await.is(201);
    assert_ne!(first["id"], theirs["id"]);
    let long = create_with(&user.caller, 0, &"k".repeat(256), &small()).await;
    assert!(
        long.is_error(400, "validation_failed")
            .starts_with("Idempotency-Key: ")
    );
}

#[tokio::test]
async fn ten_at_once_with_one_idempotency_key_are_one() {
    let user = someone().await;
    let body = small();
    let tries = (0..10).map(|n| create_with(&user.caller, n % 2, "same", &body));
    let answers = futures::future::join_all(tries).await;
    let ids: std::collections::BTreeSet<String> = answers
        .into_iter()
        .map(|answer| answer.is(201)["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(user.caller.get("/environments").await.is(200)["total"], 1);
}

#[tokio::test]
async fn a_list_is_newest_first_paged_filtered_and_without_variables() {
    let user = someone().await;
    let mut made = Vec::new();
    for (name, team) in [("a", "red"), ("b", "blue"), ("c", "red")] {
        let mut body = small();
        body["name"] = json!(name);
        body["labels"] = json!({"team": team, "tier": name});
        body["env"] = json!({"SECRET": "x"});
        made.push(user.caller.create(&body).await);
    }
    made.reverse();
    let list = user.caller.get("/environments").await.is(200);
    assert_eq!(ids(&list), made);
    assert_eq!(
        (&list["total"], &list["limit"], &list["offset"]),
        (&json!(3), &json!(100), &json!(0))
    );
    assert!(list["environments"][0].get("env").is_none());
    assert_eq!(
        list["environments"][0]["labels"],
        json!({"team": "red", "tier": "c"})
    );

    let page = user
        .caller
        .get("/environments?limit=1&offset=1")
        .await
        .is(200);
    assert_eq!(ids(&page), made[1..2]);
    assert_eq!(page["total"], 3, "total ignores paging");
    let beyond = user.caller.get("/environments?offset=9").await.is(200);
    assert!(ids(&beyond).is_empty());
    assert_eq!(beyond["total"], 3);

    for (selector, expected) in [
        ("team=red", vec![&made[0], &made[2]]),
        ("team==blue", vec![&made[1]]),
        ("team!=red", vec![&made[1]]),
        ("team=red,tier=a", vec![&made[2]]),
        ("tier in (a,b)", vec![&made[1], &made[2]]),
        ("tier notin (a,b)", vec![&made[0]]),
        ("team", vec![&made[0], &made[1], &made[2]]),
        ("!team", vec![]),
    ] {
        let request = user
            .caller
            .request(Method::GET, "/environments")
            .query(&[("label", selector)]);
        let list = send(request).await.is(200);
        assert_eq!(
            ids(&list).iter().collect::<Vec<_>>(),
            expected,
            "{selector}"
        );
        assert_eq!(list["total"], expected.len(), "{selector}");
    }
    for query in [
        "limit=0",
        "limit=1001",
        "limit=ten",
        "offset=-1",
        "status=lost",
        "label=%3D%3D",
        "label=a%20in",
        "lable=a",
    ] {
        let answer = user.caller.get(&format!("/environments?{query}")).await;
        answer.is_error(400, "validation_failed");
    }
    user.caller.get("/environments?limit=1000").await.is(200);
}

#[tokio::test]
async fn a_list_is_filtered_by_status() {
    let user = someone().await;
    let running = user.caller.running(&small()).await;
    let done = user.caller.create(&script("exit 0")).await;
    let failed = user.caller.create(&script("exit 3")).await;
    user.caller.until(&done, "terminated").await;
    user.caller.until(&failed, "failed").await;
    for (status, expected) in [
        ("running", vec![&running]),
        ("terminated", vec![&done]),
        ("failed", vec![&failed]),
        ("pending", vec![]),
        ("terminating", vec![]),
    ] {
        let path = format!("/environments?status={status}");
        let list = user.caller.get(&path).await.is(200);
        assert_eq!(ids(&list).iter().collect::<Vec<_>>(), expected, "{status}");
    }
}

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
    let begun = std::time::Instant::now();
    let path = format!("/environments/{forced}?force=true");
    user.caller.delete(&path).await.is(204);
    user.caller.until(&forced, "terminated").await;
    // The grace is 10 s.
    assert!(begun.elapsed().as_secs() < 9, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_not_there_is_404_on_every_route() {
    let user = someone().await;
    for id in [
        "env-0000000000000000",
        "nonsense",
        "user-0000000000000000",
        "a%00b",
    ] {
        let path = format!("/environments/{id}");
        user.caller.get(&path).await.is_error(404, "not_found");
        user.caller.delete(&path).await.is_error(404, "not_found");
        user.caller
            .patch(&path, &json!({"name": "a"}))
            .await
            .is_error(404, "not_found");
        user.caller
            .get(&format!("{path}/logs"))
            .await
            .is_error(404, "not_found");
        user.caller
            .get(&format!("{path}/logs?follow=true"))
            .await
            .is_error(404, "not_found");
        user.caller
            .get(&format!("{path}/events"))
            .await
            .is_error(404, "not_found");
        user.caller
            .get(&format!("{path}/attach"))
            .await
            .is_error(404, "not_found");
        let exec = json!({"command": ["true"]});
        user.caller
            .post(&format!("{path}/exec"), &exec)
            .await
            .is_error(404, "not_found");
    }
}
