//! Creates that get a ready box of a pool. No other test creates an environment of this image in this size.

use reqwest::Method;
use serde_json::{Value, json};

use super::definition;
use crate::support::boxes::small;
use crate::support::caller::{Caller, admin, new_user, send_with_retry};
use crate::support::eventually;

const IMAGE: &str = "python:3.11-slim";
/// How often a create is tried. A machine that stalls may not answer a claim in time.
const ATTEMPTS: usize = 3;

/// The pool, when it has a ready box.
async fn ready(admin: &Caller, path: &str) -> Value {
    eventually("the pool has a ready box", async || {
        let request = admin.request(Method::GET, path);
        let pool = send_with_retry(request).await.expect_status(200);
        (pool["status"]["ready"] == 1).then_some(pool)
    })
    .await
}

#[tokio::test]
async fn create_that_matches_a_pool_is_running_at_once_and_the_pool_is_refilled() {
    let (admin, user) = (admin().await, new_user().await);
    let mut body = small();
    body["image"] = json!(IMAGE);
    body["resources"]["memory"] = json!("80Mi");
    body["env"] = json!({"WHO": "me"});
    let mut wanted = definition(IMAGE);
    wanted["resources"] = body["resources"].clone();
    wanted["min_ready"] = json!(1);
    wanted["max_ready"] = json!(1);
    let name = format!("claims-{:08x}", rand::random::<u32>());
    let path = format!("/pools/{name}");
    let defined = send_with_retry(admin.request(Method::PUT, &path).json(&wanted)).await;
    // A request that was not served may have defined it.
    assert!(matches!(defined.status, 200 | 201), "{defined:?}");

    let hit = json!({"name": name, "hit": true});
    let mut created = Vec::new();
    let claimed = loop {
        ready(admin, &path).await;
        let request = user.caller.request(Method::POST, "/environments");
        let answer = send_with_retry(request.json(&body))
            .await
            .expect_status(201);
        created.push(answer["id"].as_str().unwrap().to_owned());
        if answer["status"] == "running" && answer["pool"] == hit {
            break answer;
        }
        assert!(created.len() < ATTEMPTS, "{answer}");
    };
    let id = claimed["id"].as_str().unwrap();
    let who = user.caller.sh(id, "echo $WHO").await;
    assert_eq!(who["stdout"], "me\n", "{who}");

    let refilled = ready(admin, &path).await;
    let counts = &refilled["status"];
    assert!(counts["hits"].as_u64() >= Some(1), "{refilled}");
    for id in &created {
        let request = user
            .caller
            .request(Method::DELETE, &format!("/environments/{id}"));
        send_with_retry(request).await.expect_status(204);
        let ended = user.caller.wait_until_ended(id).await;
        assert_eq!(ended["status_reason"], "DELETED", "{ended}");
    }
    let request = admin.request(Method::DELETE, &path);
    let deleted = send_with_retry(request).await;
    // A request that was not served may have deleted it.
    assert!(matches!(deleted.status, 204 | 404), "{deleted:?}");
}
