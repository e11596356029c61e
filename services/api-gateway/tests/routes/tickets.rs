//! `/auth/tickets`: a ticket is valid once, for a minute, one environment and one action.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use crate::support::boxes::{idle, script, small};
use crate::support::caller::{Caller, new_user};
use crate::support::socket::{Socket, handshake};
use crate::support::sse::Events;
use crate::support::system::shared;

async fn ticket(caller: &Caller, id: &str, action: &str) -> String {
    let body = json!({"environment_id": id, "action": action});
    let reply = caller.post("/auth/tickets", &body).await.expect_status(201);
    let expires: DateTime<Utc> = reply["expires_at"].as_str().unwrap().parse().unwrap();
    let left = expires - Utc::now();
    assert!(
        left > TimeDelta::seconds(30) && left <= TimeDelta::seconds(60),
        "{left}"
    );
    reply["ticket"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn ticket_opens_one_stream_on_any_replica() {
    let idle = idle().await;
    let browser = Caller::without_token_on(shared().await);
    let ticket = ticket(&idle.user.caller, &idle.id, "attach").await;
    let query = format!("ticket={ticket}&tty=false&command=echo&command=hi");
    let mut socket = Socket::connect(handshake(&browser, 1, &idle.id, &query))
        .await
        .unwrap();
    assert_eq!(socket.read_to_end().await.stdout, "hi\n");
    for gateway in [0, 1] {
        let again = Socket::connect(handshake(&browser, gateway, &idle.id, &query)).await;
        assert_eq!(again.err().unwrap().0, 401);
    }
}

#[tokio::test]
async fn event_source_follows_logs_with_a_ticket() {
    let user = new_user().await;
    let id = user.caller.create(&script("echo one; echo two")).await;
    let browser = user.caller.at_new_address();
    let ticket = ticket(&user.caller, &id, "logs").await;
    let path = format!("/environments/{id}/logs?follow=true&ticket={ticket}");
    let events = Events::open(&browser, &path).await.read_to_end().await;
    assert_eq!(events.len(), 3);
    assert_eq!(events[1].json()["message"], "two");
    browser.get(&path).await.expect_error(401, "unauthorized");
}

#[tokio::test]
async fn concurrent_uses_of_a_ticket_succeed_once() {
    let idle = idle().await;
    let browser = Caller::without_token_on(shared().await);
    let ticket = ticket(&idle.user.caller, &idle.id, "logs").await;
    let path = format!("/environments/{}/logs?ticket={ticket}", idle.id);
    let tries = futures::future::join_all((0..8).map(|_| browser.get(&path))).await;
    let passed = tries.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(passed, 1);
    assert!(
        tries
            .iter()
            .all(|answer| matches!(answer.status, 200 | 401))
    );
}

#[tokio::test]
async fn ticket_is_valid_only_for_its_environment_and_action() {
    let idle = idle().await;
    let owner = &idle.user.caller;
    let other = owner.create_running(&small()).await;
    let browser = owner.at_new_address();
    let fresh = ticket(owner, &idle.id, "logs").await;
    let elsewhere = browser
        .get(&format!("/environments/{other}/logs?ticket={fresh}"))
        .await;
    assert!(matches!(elsewhere.status, 401 | 404), "{elsewhere:?}");
    let attach = handshake(&browser, 0, &idle.id, &format!("ticket={fresh}"));
    let (status, _) = Socket::connect(attach).await.err().unwrap();
    assert!(matches!(status, 401 | 403), "{status}");
    // It is refused on other routes, and as a bearer token.
    let fresh = ticket(owner, &idle.id, "logs").await;
    for path in [
        format!("/environments/{}?ticket={fresh}", idle.id),
        format!("/environments/{}/events?ticket={fresh}", idle.id),
        format!("/environments?ticket={fresh}"),
    ] {
        browser.get(&path).await.expect_error(401, "unauthorized");
    }
    browser
        .with_token(&fresh)
        .get("/auth/me")
        .await
        .expect_error(401, "unauthorized");
}

#[tokio::test]
async fn ticket_for_a_forbidden_action_is_refused() {
    let idle = idle().await;
    let stranger = new_user().await;
    let body = json!({"environment_id": idle.id, "action": "logs"});
    stranger
        .caller
        .post("/auth/tickets", &body)
        .await
        .expect_error(404, "not_found");
    let reader = idle.user.key_for(&idle.id, "read").await;
    reader.post("/auth/tickets", &body).await.expect_status(201);
    let attach = json!({"environment_id": idle.id, "action": "attach"});
    reader
        .post("/auth/tickets", &attach)
        .await
        .expect_error(403, "forbidden");
    let owner = &idle.user.caller;
    for (body, field) in [
        (
            json!({"environment_id": idle.id, "action": "exec"}),
            "action",
        ),
        (json!({"environment_id": idle.id}), "action"),
        (json!({"action": "logs"}), "environment_id"),
        (
            json!({"environment_id": idle.id, "action": "logs", "ttl": 5}),
            "ttl",
        ),
    ] {
        let message = owner
            .post("/auth/tickets", &body)
            .await
            .expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{message}");
    }
}

#[tokio::test]
async fn logout_invalidates_tickets() {
    let idle = idle().await;
    let login = idle.user.log_in_again().await;
    let ticket = ticket(&login, &idle.id, "logs").await;
    login
        .post("/auth/logout", &json!(null))
        .await
        .expect_status(204);
    let path = format!("/environments/{}/logs?ticket={ticket}", idle.id);
    login
        .without_token()
        .get(&path)
        .await
        .expect_error(401, "unauthorized");
}
