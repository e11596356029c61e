//! The limits of one user, which administrators set.

use serde_json::json;

use crate::support::boxes::small;
use crate::support::caller::{admin, new_user};
use crate::support::eventually;
use crate::support::sse::Events;

#[tokio::test]
async fn limits_of_a_user_apply_to_its_next_request() {
    let (admin, user) = (admin().await, new_user().await);
    let path = format!("/users/{}", user.id);
    let limits = json!({"cpu": "1m", "rates": {"other": 4711, "create": 5}});
    let changed = admin.patch(&path, &json!({"limits": limits})).await;
    assert_eq!(changed.expect_status(200)["limits"], limits);

    let me = user.caller.get("/auth/me").await;
    assert_eq!(me.header("x-ratelimit-limit"), "4711");
    assert_eq!(me.expect_status(200)["limits"], limits);
    let refused = user.caller.post("/environments", &small()).await;
    assert_eq!(refused.header("x-ratelimit-limit"), "5");
    let message = refused.expect_error(403, "quota_exceeded");
    assert!(
        message.starts_with("your quota of CPU is 1m: "),
        "{message}"
    );

    let other = new_user().await;
    let me = other.caller.get("/auth/me").await;
    assert_ne!(me.header("x-ratelimit-limit"), "4711");

    let reset = admin.patch(&path, &json!({"limits": {}})).await;
    assert!(reset.expect_status(200).get("limits").is_none());
    let me = user.caller.get("/auth/me").await;
    assert_ne!(me.header("x-ratelimit-limit"), "4711");
}

#[tokio::test]
async fn rate_of_a_user_is_enforced() {
    let (admin, user) = (admin().await, new_user().await);
    let path = format!("/users/{}", user.id);
    let limits = json!({"limits": {"rates": {"files": 1}}});
    admin.patch(&path, &limits).await.expect_status(200);
    let file = "/environments/env-0123456789abcdef/files?path=/";
    // Several pass when a window ends, or when the gateways count alone because the bus does not answer.
    let refused = eventually("a request is refused", async || {
        let answer = user.caller.get(file).await;
        assert_eq!(answer.header("x-ratelimit-limit"), "1");
        (answer.status == 429).then_some(answer)
    })
    .await;
    assert_eq!(refused.header("x-ratelimit-remaining"), "0");
}

#[tokio::test]
async fn sessions_of_a_user_are_bounded_on_one_gateway() {
    let (admin, user) = (admin().await, new_user().await);
    let path = format!("/users/{}", user.id);
    let limits = json!({"limits": {"sessions": 1}});
    admin.patch(&path, &limits).await.expect_status(200);
    let follow = async || Events::try_open(&user.caller, 0, "/events?follow=true", None).await;
    // A machine that stalls may answer 503 or 504 to either.
    let first = eventually("a stream is open", async || follow().await.ok()).await;
    let refused = eventually("a second one is refused", async || {
        let answer = follow().await.err().expect("a second stream is not open");
        (!matches!(answer.status, 503 | 504)).then_some(answer)
    })
    .await;
    let message = refused.expect_error(429, "rate_limited");
    assert!(
        message.starts_with("you have 1 commands, terminals and streams open"),
        "{message}"
    );
    drop(first);
    eventually("its place is free", async || follow().await.ok()).await;
}

#[tokio::test]
async fn invalid_limit_returns_400_naming_it() {
    let (admin, user) = (admin().await, new_user().await);
    let path = format!("/users/{}", user.id);
    for (limits, field) in [
        (json!({"memory": "much"}), "limits.memory"),
        (json!({"sessions": 0}), "limits.sessions"),
        (json!({"rates": {"exec": 0}}), "limits.rates.exec"),
        (json!({"colour": "red"}), "colour"),
    ] {
        let refused = admin.patch(&path, &json!({"limits": limits})).await;
        let message = refused.expect_error(400, "validation_failed");
        assert!(message.contains(field), "{message}");
    }
}
