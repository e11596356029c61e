//! `/registries`: the caller's credentials of registries.

use serde_json::{Value, json};

use crate::support::caller::{admin, new_user};
use crate::support::eventually;

const SECRET: &str = "registry-password-of-a-test";

fn login() -> Value {
    json!({"username": "ada", "password": SECRET})
}

#[tokio::test]
async fn credential_is_set_listed_and_deleted_and_never_shown() {
    let user = new_user().await;
    let caller = &user.caller;
    let path = "/registries/GHCR.io";
    for _ in 0..2 {
        let set = caller.put(path, &login()).await;
        assert_eq!(set.expect_status(204), Value::Null);
    }
    let listed = caller.get("/registries").await;
    assert!(!listed.text.contains(SECRET) && !listed.text.contains("ada"));
    let listed = listed.expect_status(200);
    assert_eq!(listed["total"], 1, "{listed}");
    let registry = listed["registries"][0].as_object().unwrap();
    assert_eq!(registry["registry"], "ghcr.io");
    assert_eq!(registry.len(), 2, "{registry:?}");
    // Another user has none, and an administrator sees only its own.
    let other = new_user().await;
    for stranger in [&other.caller, admin().await] {
        let listed = stranger.get("/registries").await.expect_status(200);
        assert_eq!(listed["registries"], json!([]));
    }
    let refused = other.caller.delete(path).await;
    let message = refused.expect_error(404, "not_found");
    assert_eq!(message, "registry credential not found");
    caller.delete(path).await.expect_status(204);
    caller.delete(path).await.expect_error(404, "not_found");
    let listed = caller.get("/registries").await.expect_status(200);
    assert_eq!(listed["total"], 0, "{listed}");
}

#[tokio::test]
async fn credential_needs_a_login_or_a_management_key() {
    let user = new_user().await;
    let path = "/registries/quay.io";
    let (_, plain) = user.key(json!({})).await;
    plain
        .put(path, &login())
        .await
        .expect_error(403, "forbidden");
    plain
        .get("/registries")
        .await
        .expect_error(403, "forbidden");
    plain.delete(path).await.expect_error(403, "forbidden");
    let (_, managing) = user.key(json!({"management": true})).await;
    managing.put(path, &login()).await.expect_status(204);
    managing.delete(path).await.expect_status(204);
}

#[tokio::test]
async fn invalid_credential_returns_400_naming_the_field() {
    let user = new_user().await;
    for (registry, body, field) in [
        // Not in any cluster's list.
        ("registry.example", login(), "registry"),
        ("127.0.0.1:5432", login(), "registry"),
        ("a%20b", login(), "registry"),
        ("ghcr.io%2Fteam", login(), "registry"),
        (
            "ghcr.io",
            json!({"username": "a:b", "password": SECRET}),
            "username",
        ),
        (
            "ghcr.io",
            json!({"username": "ada", "password": ""}),
            "password",
        ),
        ("ghcr.io", json!({"username": "ada"}), "password"),
        (
            "ghcr.io",
            json!({"username": "ada", "password": SECRET, "email": "a@example.com"}),
            "email",
        ),
    ] {
        let refused = user
            .caller
            .put(&format!("/registries/{registry}"), &body)
            .await;
        let message = refused.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{registry}: {message}");
        assert!(!message.contains(SECRET), "{message}");
    }
}

#[tokio::test]
async fn credential_change_is_in_the_audit_trail_without_the_secret() {
    let user = new_user().await;
    let caller = &user.caller;
    caller
        .put("/registries/ghcr.io", &login())
        .await
        .expect_status(204);
    caller
        .delete("/registries/ghcr.io")
        .await
        .expect_status(204);
    eventually("the entries of both changes", async || {
        let trail = caller.get("/audit?target=ghcr.io").await;
        assert!(!trail.text.contains(SECRET));
        let trail = trail.expect_status(200);
        let actions: Vec<&str> = trail["entries"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|entry| entry["action"].as_str())
            .collect();
        let mut sorted = actions;
        sorted.sort_unstable();
        let both = ["delete-registry-credential", "set-registry-credential"];
        (sorted == both).then_some(())
    })
    .await;
}
