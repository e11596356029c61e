//! `/webhooks`: the caller's webhooks. Deliveries are tested with the service `webhooks` itself.

use serde_json::{Value, json};

use crate::support::caller::{admin, new_user};

fn hook() -> Value {
    json!({"url": "https://hooks.example/agentbox", "kinds": ["running"], "description": "test"})
}

#[tokio::test]
async fn webhook_is_created_listed_and_deleted_and_its_secret_is_shown_once() {
    let user = new_user().await;
    let caller = &user.caller;
    let created = caller.post("/webhooks", &hook()).await.expect_status(201);
    let secret = created["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_"), "{created}");
    let path = format!("/webhooks/{}", created["id"].as_str().unwrap());
    for listed in [caller.get("/webhooks").await, caller.get(&path).await] {
        assert!(!listed.text.contains(secret), "{}", listed.text);
    }
    let shown = caller.get(&path).await.expect_status(200);
    assert_eq!(shown["url"], "https://hooks.example/agentbox");
    assert_eq!(shown["kinds"], json!(["running"]));
    let deliveries = caller.get(&format!("{path}/deliveries?state=dead")).await;
    assert_eq!(deliveries.expect_status(200)["total"], 0);
    caller.delete(&path).await.expect_status(204);
    caller.delete(&path).await.expect_error(404, "not_found");
    let listed = caller.get("/webhooks").await.expect_status(200);
    assert_eq!(listed["total"], 0, "{listed}");
}

#[tokio::test]
async fn webhook_of_another_user_is_not_found() {
    let owner = new_user().await;
    let created = owner.caller.post("/webhooks", &hook()).await;
    let created = created.expect_status(201);
    let path = format!("/webhooks/{}", created["id"].as_str().unwrap());
    let other = new_user().await;
    let delivery = format!("{path}/deliveries/delivery-0123456789abcdef/redeliver");
    for stranger in [&other.caller, admin().await] {
        for answer in [
            stranger.get(&path).await,
            stranger.get(&format!("{path}/deliveries")).await,
            stranger.post(&delivery, &json!({})).await,
            stranger.delete(&path).await,
        ] {
            answer.expect_error(404, "not_found");
        }
    }
    owner.caller.get(&path).await.expect_status(200);
}

#[tokio::test]
async fn webhook_needs_a_login_or_a_management_key() {
    let user = new_user().await;
    let (_, plain) = user.key(json!({})).await;
    let refused = plain.post("/webhooks", &hook()).await;
    refused.expect_error(403, "forbidden");
    plain.get("/webhooks").await.expect_error(403, "forbidden");
    let (_, managing) = user.key(json!({"management": true})).await;
    managing.post("/webhooks", &hook()).await.expect_status(201);
}

#[tokio::test]
async fn invalid_webhook_returns_400_naming_the_field() {
    let user = new_user().await;
    for (body, field) in [
        (json!({}), "url"),
        (json!({"url": "hooks.example"}), "url"),
        (json!({"url": "ftp://hooks.example/"}), "url"),
        (json!({"url": "https://10.0.0.1/"}), "url"),
        (json!({"url": "https://169.254.169.254/latest"}), "url"),
        (
            json!({"url": "https://user:password@hooks.example/"}),
            "url",
        ),
        (
            json!({"url": "https://hooks.example/", "kinds": ["exploded"]}),
            "kinds",
        ),
        (
            json!({"url": "https://hooks.example/", "description": "a\nb"}),
            "description",
        ),
        (
            json!({"url": "https://hooks.example/", "secret": "mine"}),
            "secret",
        ),
    ] {
        let refused = user.caller.post("/webhooks", &body).await;
        let message = refused.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{body}: {message}");
    }
}

#[tokio::test]
async fn webhook_beyond_the_most_of_a_user_is_refused() {
    let user = new_user().await;
    for _ in 0..16 {
        user.caller
            .post("/webhooks", &hook())
            .await
            .expect_status(201);
    }
    let refused = user.caller.post("/webhooks", &hook()).await;
    assert!(refused.text.contains("16 webhooks"), "{}", refused.text);
}
