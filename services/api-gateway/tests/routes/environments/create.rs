//! `POST /environments`.

use agentbox_testing::Runtime;
use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use super::instant;
use crate::support::answer::Answer;
use crate::support::boxes::small;
use crate::support::caller::{Caller, admin, new_user, send_with_retry};
use crate::support::eventually;
use crate::support::system::runtime;

#[tokio::test]
async fn created_environment_has_the_requested_fields_and_runs() {
    let user = new_user().await;
    let mut body = small();
    body["name"] = json!("my-python-env");
    body["timeout"] = json!(1800);
    body["env"] = json!({"MY_VAR": "my-value"});
    body["labels"] = json!({"project": "my-project"});
    body["isolation"] = json!({"network_policy": {"allow_internet": false}});
    let answer = user.caller.post("/environments", &body).await;
    let location = answer.header("location").to_owned();
    let created = answer.expect_status(201);
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

    let running = user.caller.wait_for_status(id, "running").await;
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
        let body = user.caller.get(&path).await.expect_status(200);
        body.get("metrics").cloned()
    })
    .await;
    for field in ["cpu_usage", "memory_usage"] {
        assert!(metrics[field].is_string(), "{metrics}");
    }
    let reply = user.caller.sh(id, "echo $MY_VAR").await;
    assert_eq!(reply["stdout"], "my-value\n");
}

#[tokio::test]
async fn variables_are_shown_to_the_owner_and_secret_ones_to_nobody() {
    let user = new_user().await;
    let mut body = small();
    body["env"] = json!({"MY_VAR": "my-value"});
    body["secret_env"] = json!({"MY_TOKEN": "hush-hush"});
    let answer = user.caller.post("/environments", &body).await;
    assert!(!answer.text.contains("MY_TOKEN"), "{}", answer.text);
    let created = answer.expect_status(201);
    let id = created["id"].as_str().unwrap();
    user.caller.wait_for_status(id, "running").await;
    let reply = user.caller.sh(id, "echo $MY_VAR $MY_TOKEN").await;
    assert_eq!(reply["stdout"], "my-value hush-hush\n");

    let path = format!("/environments/{id}");
    let (_, key) = user.key(json!({})).await;
    let change = json!({"labels": {"a": "b"}});
    for caller in [&user.caller, &key, admin().await] {
        let is_owner = !std::ptr::eq(caller, admin().await);
        for answer in [caller.get(&path).await, caller.patch(&path, &change).await] {
            assert!(!answer.text.contains("MY_TOKEN"), "{}", answer.text);
            assert!(!answer.text.contains("hush-hush"), "{}", answer.text);
            assert_eq!(answer.text.contains("my-value"), is_owner);
            let shown = answer.expect_status(200);
            if is_owner {
                assert_eq!(shown["env"], body["env"]);
                assert!(shown.get("env_names").is_none(), "{shown}");
            } else {
                assert!(shown.get("env").is_none(), "{shown}");
                assert_eq!(shown["env_names"], json!(["MY_VAR"]));
            }
        }
    }
    let list = user.caller.get("/environments").await;
    for text in ["MY_VAR", "MY_TOKEN", "hush-hush"] {
        assert!(!list.text.contains(text), "{}", list.text);
    }
}

#[tokio::test]
async fn requested_isolation_is_returned_and_enforced() {
    let user = new_user().await;
    let mut body = small();
    body["name"] = json!("n".repeat(63));
    body["isolation"] = json!({
        "network_policy": {
            "allow_internet": false,
            "allowed_ingress_ports": [8080],
            "allow_cluster_internal": false,
        },
        "security_context": {
            "run_as_user": 1000,
            "run_as_group": 1001,
            "run_as_non_root": true,
            "read_only_root_filesystem": true,
            "allow_privilege_escalation": false,
        },
    });
    let created = user
        .caller
        .post("/environments", &body)
        .await
        .expect_status(201);
    assert_eq!(created["name"], body["name"], "the longest name");
    for part in ["network_policy", "security_context"] {
        for (field, value) in body["isolation"][part].as_object().unwrap() {
            let answered = &created["isolation"][part][field];
            assert_eq!(answered, value, "{part}.{field}");
        }
    }
    let id = created["id"].as_str().unwrap();
    user.caller.wait_for_status(id, "running").await;
    let text = "id -u; id -g; grep NoNewPrivs /proc/self/status; touch /x || echo read-only";
    let reply = user.caller.sh(id, text).await;
    assert_eq!(
        reply["stdout"], "1000\n1001\nNoNewPrivs:\t1\nread-only\n",
        "{reply}"
    );
}

#[tokio::test]
async fn command_of_the_image_runs_if_it_is_requested_and_the_cluster_knows_it() {
    let user = new_user().await;
    let mut body = small();
    body["use_entrypoint"] = json!(true);
    let answer = user.caller.post("/environments", &body).await;
    if runtime() == Runtime::Kubernetes {
        let message = answer.expect_error(400, "validation_failed");
        assert!(
            message.starts_with("use_entrypoint: ") && message.contains("kubernetes"),
            "{message}"
        );
    } else {
        let created = answer.expect_status(201);
        assert_eq!(created["use_entrypoint"], true);
        // The image has no ENTRYPOINT, and its CMD is a shell. Its input is empty, so it ends.
        let ended = user
            .caller
            .wait_until_ended(created["id"].as_str().unwrap())
            .await;
        assert_eq!(ended["status"], "terminated", "{ended}");
        assert_eq!(ended["status_reason"], "EXITED", "{ended}");
        assert_eq!(ended["exit_code"], 0, "{ended}");
        assert_eq!(ended["use_entrypoint"], true);
        assert!(ended.get("command").is_none(), "{ended}");
    }
    body["command"] = json!(["sh"]);
    let answer = user.caller.post("/environments", &body).await;
    assert_eq!(
        answer.expect_error(400, "validation_failed"),
        "use_entrypoint: must be false with `command`, which replaces the image's ENTRYPOINT, is \
         `true`"
    );
    body["use_entrypoint"] = json!(false);
    let created = user.caller.post("/environments", &body).await;
    assert!(created.expect_status(201).get("use_entrypoint").is_none());
}

#[tokio::test]
async fn missing_required_field_returns_400_and_optional_fields_have_defaults() {
    let user = new_user().await;
    let created = user
        .caller
        .post("/environments", &small())
        .await
        .expect_status(201);
    assert_eq!(created["timeout"], 3600, "the default");
    assert_eq!(created["labels"], json!({}));
    assert_eq!(created["env"], json!({}));
    for field in [
        "command",
        "use_entrypoint",
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
            answer.expect_error(400, "validation_failed"),
            format!("{field}: is required")
        );
    }
    for field in ["cpu", "memory", "storage"] {
        let mut body = small();
        body["resources"].as_object_mut().unwrap().remove(field);
        let answer = user.caller.post("/environments", &body).await;
        let expected = format!("resources.{field}: is required");
        assert_eq!(answer.expect_error(400, "validation_failed"), expected);
    }
}

#[tokio::test]
async fn invalid_field_returns_400_naming_it_and_creates_nothing() {
    let user = new_user().await;
    for (field, value) in [
        ("name", json!("")),
        ("name", json!("Upper")),
        ("name", json!("-a")),
        ("name", json!("a".repeat(64))),
        ("name", json!(7)),
        ("image", json!("")),
        ("image", json!("a b")),
        ("image", json!("http://x/y")),
        ("timeout", json!(0)),
        ("timeout", json!(-1)),
        ("timeout", json!(1.5)),
        ("timeout", json!("3600")),
        ("env", json!({"A=B": "c"})),
        ("env", json!({"": "c"})),
        ("secret_env", json!({"A=B": "c"})),
        ("env", json!({"A": "x".repeat(131_070)})),
        ("command", json!([])),
        ("command", json!("sh")),
        ("use_entrypoint", json!("yes")),
        ("use_entrypoint", json!(null)),
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
        let message = answer.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{field} {value}: {message}");
    }
    for (field, value) in [
        ("cpu", "much"),
        ("memory", "-1Gi"),
        ("storage", ""),
        ("storage", "1Ei"),
        ("gpu", "1"),
    ] {
        let mut body = small();
        body["resources"][field] = json!(value);
        let answer = user.caller.post("/environments", &body).await;
        let message = answer.expect_error(400, "validation_failed");
        assert!(
            message.starts_with(&format!("resources.{field}: ")),
            "{message}"
        );
    }
    assert_eq!(
        user.caller.get("/environments").await.expect_status(200)["total"],
        0
    );
}

#[tokio::test]
async fn quantity_in_any_notation_is_returned_as_written() {
    let user = new_user().await;
    let mut body = small();
    body["resources"] = json!({"cpu": "0.1", "memory": "0.125Gi", "storage": "67108864"});
    let created = user
        .caller
        .post("/environments", &body)
        .await
        .expect_status(201);
    assert_eq!(created["resources"], body["resources"]);
}

async fn create_with(caller: &Caller, gateway: usize, key: &str, body: &Value) -> Answer {
    let request = caller
        .request_on(gateway, Method::POST, "/environments")
        .header("idempotency-key", key)
        .json(body);
    send_with_retry(request).await
}

#[tokio::test]
async fn repeated_idempotency_key_returns_the_first_environment_or_409_for_another_body() {
    let user = new_user().await;
    let first = create_with(&user.caller, 0, "k-1", &small())
        .await
        .expect_status(201);
    let again = create_with(&user.caller, 1, "k-1", &small())
        .await
        .expect_status(201);
    assert_eq!(first["id"], again["id"]);
    let mut other = small();
    other["name"] = json!("another");
    create_with(&user.caller, 0, "k-1", &other)
        .await
        .expect_error(409, "idempotency_conflict");
    let next = create_with(&user.caller, 1, "k-2", &small())
        .await
        .expect_status(201);
    assert_ne!(first["id"], next["id"]);
    assert_eq!(
        user.caller.get("/environments").await.expect_status(200)["total"],
        2
    );
    // Users have separate idempotency keys.
    let other = new_user().await;
    let theirs = create_with(&other.caller, 0, "k-1", &small())
        .await
        .expect_status(201);
    assert_ne!(first["id"], theirs["id"]);
    let long = create_with(&user.caller, 0, &"k".repeat(256), &small()).await;
    assert!(
        long.expect_error(400, "validation_failed")
            .starts_with("Idempotency-Key: ")
    );
}

#[tokio::test]
async fn concurrent_requests_with_one_idempotency_key_create_one_environment() {
    let user = new_user().await;
    let body = small();
    let tries = (0..10).map(|n| create_with(&user.caller, n % 2, "same", &body));
    let answers = futures::future::join_all(tries).await;
    let ids: std::collections::BTreeSet<String> = answers
        .into_iter()
        .map(|answer| answer.expect_status(201)["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(
        user.caller.get("/environments").await.expect_status(200)["total"],
        1
    );
}

#[tokio::test]
async fn create_that_waits_answers_once_the_environment_runs_or_has_ended() {
    let user = new_user().await;
    let request = user
        .caller
        .request(Method::POST, "/environments?wait=running")
        .json(&small());
    let running = send_with_retry(request).await.expect_status(201);
    assert_eq!(running["status"], "running", "{running}");
    assert!(running["started_at"].is_string(), "{running}");
    let mut missing = small();
    missing["image"] = json!("no-such-image-of-ours:1");
    let request = user
        .caller
        .request(Method::POST, "/environments?wait=running")
        .json(&missing);
    let failed = send_with_retry(request).await.expect_status(201);
    assert_eq!(failed["status"], "failed", "{failed}");
    assert_eq!(failed["status_reason"], "IMAGE_PULL");
    let message = user
        .caller
        .post("/environments?wait=soon", &small())
        .await
        .expect_error(400, "validation_failed");
    assert!(message.starts_with("wait"), "{message}");
}
