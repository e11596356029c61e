//! `/api-keys`: the keys of the caller.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::boxes::{idle, small};
use crate::support::caller::{Caller, new_user};
use crate::support::eventually;

fn instant(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn new_key_is_shown_once_and_acts_as_its_owner() {
    let user = new_user().await;
    let body = json!({"description": "CI/CD Pipeline Key", "expires_in": 90});
    let answer = user.caller.post("/api-keys", &body).await;
    let created = answer.expect_status(201);
    let key = created["key"].as_str().unwrap();
    assert!(key.starts_with("agentbox_"), "the guide's form");
    assert!(created["id"].as_str().unwrap().starts_with("key-"));
    assert_eq!(created["description"], "CI/CD Pipeline Key");
    assert_eq!(created["permissions"], json!([]));
    let life = instant(&created["expires_at"]) - instant(&created["created_at"]);
    let off = (life - TimeDelta::days(90)).abs();
    assert!(off < TimeDelta::seconds(10), "{life}");

    let caller = user.caller.with_token(key);
    assert_eq!(
        caller.get("/auth/me").await.expect_status(200)["id"],
        user.id
    );
    let id = caller.create(&small()).await;
    assert_eq!(
        user.caller
            .get(&format!("/environments/{id}"))
            .await
            .expect_status(200)["owner"],
        user.id
    );

    let answer = caller.get("/api-keys").await;
    assert!(!answer.text.contains(key), "the secret is shown once");
    let list = answer.expect_status(200);
    assert_eq!(list["api_keys"][0]["id"], created["id"]);
    assert_eq!(list["total"], 1);
    let path = format!("/api-keys/{}", created["id"].as_str().unwrap());
    let one = caller.get(&path).await.expect_status(200);
    assert_eq!(one["description"], "CI/CD Pipeline Key");
    assert!(one.get("key").is_none());
    eventually("last_used_at is set", async || {
        let used = user.caller.get(&path).await.expect_status(200)["last_used_at"].clone();
        (!used.is_null()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn absent_or_null_key_fields_have_defaults() {
    let user = new_user().await;
    for body in [
        json!({}),
        json!({"description": null, "expires_in": null, "permissions": null}),
    ] {
        let created = user
            .caller
            .post("/api-keys", &body)
            .await
            .expect_status(201);
        assert_eq!(created["description"], Value::Null);
        assert_eq!(created["expires_at"], Value::Null, "never");
    }
    let list = user
        .caller
        .get("/api-keys?limit=1&offset=1")
        .await
        .expect_status(200);
    assert_eq!(list["api_keys"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&list["total"], &list["limit"], &list["offset"]),
        (&json!(2), &json!(1), &json!(1))
    );
}

#[tokio::test]
async fn invalid_key_field_returns_400_and_foreign_environment_404() {
    let user = new_user().await;
    let id = user.caller.create(&small()).await;
    let on = |id: &str, permission: &str| json!([{"environment_id": id, "permission": permission}]);
    for (body, field) in [
        (json!({"expires_in": 0}), "expires_in"),
        (json!({"expires_in": 3651}), "expires_in"),
        (json!({"expires_in": "90"}), "expires_in"),
        (json!({"description": "x".repeat(257)}), "description"),
        (
            json!({"permissions": on(&id, "root")}),
            "permissions[0].permission",
        ),
        (
            json!({"permissions": [{"environment_id": id}]}),
            "permissions[0].permission",
        ),
        (json!({"permissions": []}), "permissions"),
        (
            json!({"permissions": on(&id, "read"), "management": true}),
            "management",
        ),
        (json!({"scope": "all"}), "scope"),
    ] {
        let message = user
            .caller
            .post("/api-keys", &body)
            .await
            .expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{body}: {message}");
    }
    // An environment that the owner may not see is not found.
    for id in [&idle().await.id, "env-0000000000000000", "nonsense"] {
        user.caller
            .post("/api-keys", &json!({"permissions": on(id, "read")}))
            .await
            .expect_error(404, "not_found");
    }
}

/// The status with which each route of an environment answers this caller.
async fn statuses(caller: &Caller, id: &str) -> Vec<u16> {
    let path = format!("/environments/{id}");
    let exec = json!({"command": ["true"]});
    vec![
        caller.get(&path).await.status,
        caller.get(&format!("{path}/logs")).await.status,
        caller.get(&format!("{path}/events")).await.status,
        caller.post(&format!("{path}/exec"), &exec).await.status,
        caller
            .patch(&path, &json!({"labels": {"a": "b"}}))
            .await
            .status,
    ]
}

#[tokio::test]
async fn each_permission_allows_its_documented_routes_on_its_environment_only() {
    let user = new_user().await;
    let id = user.caller.create_running(&small()).await;
    let other = user.caller.create(&small()).await;
    for (permission, expected) in [
        ("read", [200, 200, 200, 403, 403]),
        ("write", [200, 200, 200, 200, 403]),
        ("admin", [200, 200, 200, 200, 200]),
    ] {
        let key = user.key_for(&id, permission).await;
        assert_eq!(statuses(&key, &id).await, expected, "{permission}");
        // The key does not reveal the owner's other environments.
        assert_eq!(statuses(&key, &other).await, [404; 5], "{permission}");
        let list = key.get("/environments").await.expect_status(200);
        assert_eq!(list["total"], 1, "{permission}");
        assert_eq!(list["environments"][0]["id"], id.as_str());
        key.post("/environments", &small())
            .await
            .expect_error(403, "forbidden");
        key.post("/api-keys", &json!({}))
            .await
            .expect_error(403, "forbidden");
        key.get("/api-keys").await.expect_error(403, "forbidden");
        let status = key.delete(&format!("/environments/{other}")).await.status;
        assert_eq!(status, 404, "{permission}");
        let status = key.delete(&format!("/environments/{id}")).await.status;
        assert_eq!(status, if permission == "admin" { 204 } else { 403 });
    }
}

#[tokio::test]
async fn revoked_key_is_refused_at_once_on_every_replica_and_not_listed() {
    let user = new_user().await;
    let (id, key) = user.key(json!({})).await;
    let (_, other) = user.key(json!({})).await;
    for gateway in 0..key.gateways() {
        key.get_on(gateway, "/auth/me").await.expect_status(200);
    }
    let path = format!("/api-keys/{id}");
    let answer = user.caller.delete(&path).await;
    assert_eq!(answer.text, "");
    answer.expect_status(204);
    for gateway in 0..key.gateways() {
        key.get_on(gateway, "/auth/me")
            .await
            .expect_error(401, "unauthorized");
    }
    other.get("/auth/me").await.expect_status(200);
    user.caller.get(&path).await.expect_error(404, "not_found");
    user.caller
        .delete(&path)
        .await
        .expect_error(404, "not_found");
    assert_eq!(
        user.caller.get("/api-keys").await.expect_status(200)["total"],
        1
    );
}

#[tokio::test]
async fn key_of_a_key_ends_with_it() {
    let user = new_user().await;
    let (id, parent) = user.key(json!({"expires_in": 1})).await;
    let (_, never) = user.key(json!({})).await;
    let path = format!("/api-keys/{id}");
    let shown = parent.get(&path).await.expect_status(200);
    for body in [json!({}), json!({"expires_in": 90})] {
        let made = parent.post("/api-keys", &body).await.expect_status(201);
        assert_eq!(made["expires_at"], shown["expires_at"], "{body}");
    }
    let made = parent
        .post("/api-keys", &json!({}))
        .await
        .expect_status(201);
    let child = parent.with_token(made["key"].as_str().unwrap());
    child.get("/auth/me").await.expect_status(200);

    // Neither its child nor another key may revoke it.
    for other in [&child, &never] {
        other.delete(&path).await.expect_error(403, "forbidden");
    }
    parent.delete(&path).await.expect_status(204);
    for gone in [&parent, &child] {
        gone.get("/auth/me").await.expect_error(401, "unauthorized");
    }
    never.get("/auth/me").await.expect_status(200);
}

#[tokio::test]
async fn managing_key_revokes_the_keys_of_its_owner() {
    let user = new_user().await;
    let (id, key) = user.key(json!({})).await;
    let (managing_id, managing) = user.key(json!({"management": true})).await;
    let shown = managing.get(&format!("/api-keys/{managing_id}")).await;
    assert_eq!(shown.expect_status(200)["management"], true);
    managing
        .delete(&format!("/api-keys/{id}"))
        .await
        .expect_status(204);
    key.get("/auth/me").await.expect_error(401, "unauthorized");
    // A user's key manages no users.
    managing.get("/users").await.expect_error(403, "forbidden");
}

#[tokio::test]
async fn foreign_key_returns_404() {
    let (owner, stranger) = (new_user().await, new_user().await);
    let (id, key) = owner.key(json!({})).await;
    let path = format!("/api-keys/{id}");
    stranger
        .caller
        .get(&path)
        .await
        .expect_error(404, "not_found");
    stranger
        .caller
        .delete(&path)
        .await
        .expect_error(404, "not_found");
    assert_eq!(
        stranger.caller.get("/api-keys").await.expect_status(200)["total"],
        0
    );
    key.get("/auth/me").await.expect_status(200);
}
