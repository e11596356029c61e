//! Streams end within five seconds after their credential or right is revoked, on every replica.
//! `expiry` tests credentials that expire.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::support::boxes::{Idle, idle, small};
use crate::support::caller::{User, admin, someone};
use crate::support::sse::Events;
use crate::support::streams::{AT_MOST, Streams};
use crate::support::system::shared;

/// An environment of another user, and an administrator.
async fn administered() -> (&'static Idle, User) {
    let chief = crate::support::caller::new_user(admin().await, "admin").await;
    (idle().await, chief)
}

#[tokio::test]
async fn logout_ends_streams() {
    let idle = idle().await;
    let login = idle.user.log_in_again().await;
    let streams = Streams::open(&login, &idle.id).await;
    login.post("/auth/logout", &json!(null)).await.is(204);
    streams.end(&idle.user.caller, &idle.id).await;
}

#[tokio::test]
async fn revoked_key_ends_streams() {
    let idle = idle().await;
    let (id, key) = idle.user.key(json!({})).await;
    let streams = Streams::open(&key, &idle.id).await;
    idle.user
        .caller
        .delete(&format!("/api-keys/{id}"))
        .await
        .is(204);
    streams.end(&idle.user.caller, &idle.id).await;
}

#[tokio::test]
async fn expired_key_ends_streams() {
    let idle = idle().await;
    let (id, key) = idle.user.key(json!({"expires_in": 1})).await;
    // The API takes whole days only.
    let soon = format!(
        "UPDATE auth.api_keys SET expires_at = now() + interval '6 seconds' WHERE id = '{id}'"
    );
    let postgres = shared().await.postgres.as_ref().unwrap();
    postgres.execute(&[&soon]).await.unwrap();
    let expires = Instant::now() + Duration::from_secs(6);
    let streams = Streams::open(&key, &idle.id).await;
    assert!(Instant::now() < expires, "opened in time");
    tokio::time::sleep_until(expires).await;
    streams.end(&idle.user.caller, &idle.id).await;
    for gateway in 0..key.gateways() {
        key.get_on(gateway, "/auth/me")
            .await
            .is_error(401, "unauthorized");
    }
}

#[tokio::test]
async fn password_change_ends_streams() {
    let (idle, chief) = administered().await;
    let streams = Streams::open(&chief.caller, &idle.id).await;
    let path = format!("/users/{}", chief.id);
    admin()
        .await
        .patch(&path, &json!({"password": "another passphrase"}))
        .await
        .is(200);
    streams.end(&idle.user.caller, &idle.id).await;
}

#[tokio::test]
async fn deleted_user_ends_streams() {
    let (idle, chief) = administered().await;
    let streams = Streams::open(&chief.caller, &idle.id).await;
    admin()
        .await
        .delete(&format!("/users/{}", chief.id))
        .await
        .is(204);
    streams.end(&idle.user.caller, &idle.id).await;
}

#[tokio::test]
async fn lost_visibility_ends_streams() {
    let (idle, chief) = administered().await;
    let own = chief.caller.create(&small()).await;
    let path = format!("/environments/{own}/logs?follow=true");
    let mut kept = Events::open(&chief.caller, &path).await;
    let streams = Streams::open(&chief.caller, &idle.id).await;
    admin()
        .await
        .patch(&format!("/users/{}", chief.id), &json!({"role": "user"}))
        .await
        .is(200);
    streams
        .end_with(404, 403, 4404, &idle.user.caller, &idle.id)
        .await;
    let foreign = format!("/environments/{}", idle.id);
    chief.caller.get(&foreign).await.is_error(404, "not_found");
    // Its login and its own environments stay valid.
    let quiet = timeout(Duration::from_millis(200), kept.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn logout_ends_streams_opened_with_a_ticket() {
    let idle = idle().await;
    let login = idle.user.log_in_again().await;
    let body = json!({"environment_id": idle.id, "action": "logs"});
    let ticket = login.post("/auth/tickets", &body).await.is(201);
    let path = format!(
        "/environments/{}/logs?follow=true&ticket={}",
        idle.id,
        ticket["ticket"].as_str().unwrap()
    );
    let events = Events::open(&login.elsewhere(), &path).await;
    login.post("/auth/logout", &json!(null)).await.is(204);
    let rest = timeout(AT_MOST, events.rest())
        .await
        .expect("it ends in time");
    assert_eq!(rest.last().unwrap().name, "error");
}

#[tokio::test]
async fn valid_credential_keeps_its_stream_open() {
    let idle = idle().await;
    let user = someone().await;
    let (_, key) = user.key(json!({})).await;
    let mut events = Events::open(&key, "/events?follow=true").await;
    // The logout of another user does not end it.
    let login = idle.user.log_in_again().await;
    login.post("/auth/logout", &json!(null)).await.is(204);
    let quiet = timeout(AT_MOST, events.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}
