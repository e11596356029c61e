//! `/api-keys`: the caller's own.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::boxes::{idle, small};
use crate::support::caller::{Caller, someone};
use crate::support::eventually;

fn instant(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_key_is_shown_once_acts_as_its_owner_and_is_listed_without_its_secret() {
    let user = someone().await;
    let body = json!({"description": "CI/CD Pipeline Key", "expires_in": 90});
    let answer = user.caller.post("/api-keys", &body).await;
    let created = answer.is(201);
    let key = created["key"].as_str().unwrap();
    assert!(key.starts_with("agentbox_"), "the guide's form");
    assert!(created["id"].as_str().unwrap().starts_with("key-"));
    assert_eq!(created["description"], "CI/CD Pipeline Key");
    assert_eq!(created["permissions"], json!([]));
    let life = instant(&created["expires_at"]) - instant(&created["created_at"]);
    let off = (life - TimeDelta::days(90)).abs();
    assert!(off < TimeDelta::seconds(10), "{life}");

    let caller = user.caller.with(key);
    assert_eq!(caller.get("/auth/me").await.is(200)["id"], user.id);
    let id = caller.create(&small()).await;
    assert_eq!(
        user.caller
            .get(&format!("/environments/{id}"))
            .await
            .is(200)["owner"],
        user.id
    );

    let answer = caller.get("/api-keys").await;
    assert!(!answer.text.contains(key), "the secret is shown once");
    let list = answer.is(200);
    assert_eq!(list["api_keys"][0]["id"], created["id"]);
    assert_eq!(list["total"], 1);
    let path = format!("/api-keys/{}", created["id"].as_str().unwrap());
    let one = caller.get(&path).await.is(200);
    assert_eq!(one["description"], "CI/CD Pipeline Key");
    assert!(one.get("key").is_none());
    eventually("the key's use is noted", async || {
        let used = user.caller.get(&path).await.is(200)["last_used_at"].clone();
        (!used.is_null()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn everything_about_a_key_is_optional() {
    let user = someone().await;
    for body in [
        json!({}),
        json!({"description": null, "expires_in": null, "permissions": null}),
    ] {
        let created = user.caller.post("/api-keys", &body).await.is(201);
        assert_eq!(created["description"], Value::Null);
        assert_eq!(created["expires_at"], Value::Null, "never");
    }
    let list = user.caller.get("/api-keys?limit=1&offset=1").await.is(200);
    assert_eq!(list["api_keys"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&list["total"], &list["limit"], &list["offset"]),
        (&json!(2), &json!(1), &json!(1))
    );
}

#[tokio::test]
async fn what_a_key_may_say_is_refused_by_field() {
    let user = someone().await;
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
        (json!({"scope": "all"}), "scope"),
    ] {
        let message = user
            .caller
            .post("/api-keys", &body)
            .await
            .is_error(400, "validation_failed");
        assert!(message.starts_with(field), "{body}: {message}");
    }
    // What its owner does not see is not there for a key either.
    for id in [&idle().await.id, "env-0000000000000000", "nonsense"] {
        user.caller
            .post("/api-keys", &json!({"permissions": on(id, "read")}))
            .await
            .is_error(404, "not_found");
    }
}

/// What each of the routes of an environment answers to this caller.
async fn reached(caller: &Caller, id: &str) -> Vec<u16> {
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
async fn each_permission_reaches_what_the_guide_says_and_what_is_below_it() {
    let user = someone().await;
    let id = user.caller.running(&small()).await;
    let other = user.caller.create(&small()).await;
    for (permission, expected) in [
        ("read", [200, 200, 200, 403, 403]),
        ("write", [200, 200, 200, 200, 403]),
        ("admin", [200, 200, 200, 200, 200]),
    ] {
        let key = user.key_for(&id, permission).await;
        assert_eq!(reached(&key, &id).await, expected, "{permission}");
        // Not even that the owner has others.
        assert_eq!(reached(&key, &other).await, [404; 5], "{permission}");
        let list = key.get("/environments").await.is(200);
        assert_eq!(list["total"], 1, "{permission}");
        assert_eq!(list["environments"][0]["id"], id.as_str());
        key.post("/environments", &small())
            .await
            .is_error(403, "forbidden");
        key.post("/api-keys", &json!({}))
            .await
            .is_error(403, "forbidden");
        key.get("/api-keys").await.is_error(403, "forbidden");
        let status = key.delete(&format!("/environments/{other}")).await.status;
        assert_eq!(status, 404, "{permission}");
        let status = key.delete(&format!("/environments/{id}")).await.status;
        assert_eq!(status, if permission == "admin" { 204 } else { 403 });
    }
}

#[tokio::test]
async fn a_revoked_key_is_dead_at_once_on_every_replica_and_gone_from_the_list() {
    let user = someone().await;
    let (id, key) = user.key(json!({})).await;
    let (_, other) = user.key(json!({})).await;
    for gateway in 0..key.gateways() {
        key.get_on(gateway, "/auth/me").await.is(200);
    }
    let path = format!("/api-keys/{id}");
    let answer = user.caller.delete(&path).await;
    assert_eq!(answer.text, "");
    answer.is(204);
    for gateway in 0..key.gateways() {
        key.get_on(gateway, "/auth/me")
            .await
            .is_error(401, "unauthorized");
    }
    other.get("/auth/me").await.is(200);
    user.caller.get(&path).await.is_error(404, "not_found");
    user.caller.delete(&path).await.is_error(404, "not_found");
    assert_eq!(user.caller.get("/api-keys").await.is(200)["total"], 1);
}

#[tokio::test]
async fn somebody_elses_key_is_not_there() {
    let (owner, stranger) = (someone().await, someone().await);
    let (id, key) = owner.key(json!({})).await;
    let path = format!("/api-keys/{id}");
    stranger.caller.get(&path).await.is_error(404, "not_found");
    stranger
        .caller
        .delete(&path)
        .await
        .is_error(404, "not_found");
    assert_eq!(stranger.caller.get("/api-keys").await.is(200)["total"], 0);
    key.get("/auth/me").await.is(200);
}
