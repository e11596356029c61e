//! `/webhooks`: the caller's webhooks. Signatures, retries and what a webhook reaches are tested with the
//! service `webhooks` itself.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::support::boxes::script;
use crate::support::caller::{Caller, admin, new_user};
use crate::support::eventually;

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

/// A server on the loopback that keeps the `webhook-id` of each request.
struct Receiver {
    url: String,
    received: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// Answers the first requests with these statuses, and all others with 204.
    async fn start(statuses: &'static [u16]) -> Self {
        let received: Arc<Mutex<Vec<String>>> = Arc::default();
        let ids = received.clone();
        let receive = move |headers: HeaderMap, _: Bytes| {
            let mut ids = ids.lock().unwrap();
            let status = statuses.get(ids.len()).copied().unwrap_or(204);
            ids.push(headers["webhook-id"].to_str().unwrap().to_owned());
            std::future::ready(StatusCode::from_u16(status).unwrap())
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let app = Router::new().fallback(receive);
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            url,
            received,
            server,
        }
    }

    fn received(&self) -> Vec<String> {
        self.received.lock().unwrap().clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Waits until this many deliveries of a webhook have this state. Returns them, newest first.
async fn deliveries(caller: &Caller, path: &str, state: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} {state}"), async || {
        let listed = caller.get(&format!("{path}?state={state}")).await;
        let listed = listed.expect_status(200);
        let found = listed["deliveries"].as_array().unwrap().clone();
        assert_eq!(listed["total"], found.len(), "{listed}");
        (found.len() == count).then_some(found)
    })
    .await
}

#[tokio::test]
async fn dead_delivery_is_in_the_history_and_delivered_once_when_it_is_repeated() {
    let user = new_user().await;
    let caller = &user.caller;
    let receiver = Receiver::start(&[500, 503]).await;
    let hook = json!({"url": receiver.url, "kinds": ["created"]});
    let created = caller.post("/webhooks", &hook).await.expect_status(201);
    let path = format!("/webhooks/{}/deliveries", created["id"].as_str().unwrap());
    let environment = caller.create(&script("exit 0")).await;
    let dead = deliveries(caller, &path, "dead", 1).await.remove(0);
    for (field, value) in [
        ("environment_id", json!(environment)),
        ("kind", json!("created")),
        ("attempts", json!(2)),
        ("response_status", json!(503)),
        ("error", json!("the receiver answered 503")),
    ] {
        assert_eq!(dead[field], value, "{field}: {dead}");
    }
    let id = dead["id"].as_str().unwrap();
    assert_eq!(receiver.received(), [id, id]);
    let history = caller.get(&path).await.expect_status(200);
    assert_eq!(history["deliveries"], json!([dead]));

    let redeliver = format!("{path}/{id}/redeliver");
    let again = caller.post(&redeliver, &json!({})).await.expect_status(202);
    assert_eq!(again["id"], id, "{again}");
    assert_eq!(again["state"], "pending", "{again}");
    let delivered = deliveries(caller, &path, "delivered", 1).await.remove(0);
    assert_eq!(delivered["id"], id, "{delivered}");
    assert_eq!(delivered["attempts"], 1, "{delivered}");
    assert_eq!(delivered["response_status"], 204, "{delivered}");
    deliveries(caller, &path, "dead", 0).await;

    // The next event is the next request: the repeated one was sent once.
    caller.create(&script("exit 0")).await;
    let next = deliveries(caller, &path, "delivered", 2).await.remove(0);
    let next = next["id"].as_str().unwrap();
    assert_eq!(receiver.received(), [id, id, id, next]);
}
