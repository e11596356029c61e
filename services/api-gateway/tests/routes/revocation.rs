//! After a credential or right is revoked, requests are refused at once and streams end within five
//! seconds, on every replica. `expiry` tests credentials that expire, `outages` a replica that is stopped.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::support::access::Access;
use crate::support::boxes::{OwnedEnvironment, idle, small};
use crate::support::caller::{User, admin, new_user, new_user_with_role};
use crate::support::sse::Events;
use crate::support::streams::{END_DEADLINE, Streams};
use crate::support::system::shared;
use crate::support::{TIMEOUT, repeat_until_below};

/// An environment of another user, and an administrator.
async fn foreign_environment_and_admin() -> (&'static OwnedEnvironment, User) {
    let second_admin = new_user_with_role(admin().await, "admin").await;
    (idle().await, second_admin)
}

#[tokio::test]
async fn revocation_of_every_kind_holds_for_the_next_request_on_every_replica() {
    let admin = admin().await;
    for access in Access::of_every_kind(admin).await {
        for gateway in 0..admin.gateways() {
            access.expect_granted(gateway).await;
        }
        access.revoke_on(1).await;
        for gateway in 0..admin.gateways() {
            access.expect_revoked(gateway).await;
        }
    }
}

#[tokio::test]
async fn changed_record_is_read_by_the_next_request_on_every_replica() {
    let admin = admin().await;
    let user = new_user_with_role(admin, "user").await;
    let path = format!("/users/{}", user.id);
    for change in 0..5 {
        for gateway in 0..admin.gateways() {
            // The second one is answered from memory, mostly.
            for _ in 0..2 {
                let me = user.caller.get_on(gateway, "/auth/me").await;
                me.expect_status(200);
            }
        }
        let email = format!("{}-{change}@example.com", user.username);
        admin
            .patch(&path, &json!({"email": email}))
            .await
            .expect_status(200);
        for gateway in 0..admin.gateways() {
            let me = user.caller.get_on(gateway, "/auth/me").await;
            assert_eq!(me.expect_status(200)["email"], email.as_str(), "{gateway}");
        }
    }
}

#[tokio::test]
async fn logout_ends_streams() {
    repeat_until_below(END_DEADLINE, async || {
        let idle = idle().await;
        let login = idle.user.log_in_again().await;
        let streams = Streams::open(&login, &idle.id).await;
        login
            .post("/auth/logout", &json!(null))
            .await
            .expect_status(204);
        streams
            .expect_unauthorized(&idle.user.caller, &idle.id)
            .await
    })
    .await;
}

#[tokio::test]
async fn revoked_key_ends_streams() {
    repeat_until_below(END_DEADLINE, async || {
        let idle = idle().await;
        let (id, key) = idle.user.key(json!({})).await;
        let streams = Streams::open(&key, &idle.id).await;
        idle.user
            .caller
            .delete(&format!("/api-keys/{id}"))
            .await
            .expect_status(204);
        streams
            .expect_unauthorized(&idle.user.caller, &idle.id)
            .await
    })
    .await;
}

#[tokio::test]
async fn expired_key_ends_streams() {
    repeat_until_below(END_DEADLINE, async || {
        let idle = idle().await;
        let (id, key) = idle.user.key(json!({"expires_in": 1})).await;
        // The API takes whole days only.
        let soon = format!(
            "UPDATE auth.api_keys SET expires_at = now() + interval '12 seconds' WHERE id = '{id}'"
        );
        let postgres = shared().await.postgres.as_ref().unwrap();
        postgres.execute(&[&soon]).await.unwrap();
        let expires = Instant::now() + Duration::from_secs(12);
        let streams = Streams::open(&key, &idle.id).await;
        assert!(Instant::now() < expires, "the streams were opened in time");
        tokio::time::sleep_until(expires).await;
        let took = streams
            .expect_unauthorized(&idle.user.caller, &idle.id)
            .await;
        for gateway in 0..key.gateways() {
            key.get_on(gateway, "/auth/me")
                .await
                .expect_error(401, "unauthorized");
        }
        took
    })
    .await;
}

#[tokio::test]
async fn password_change_ends_streams() {
    repeat_until_below(END_DEADLINE, async || {
        let (idle, second_admin) = foreign_environment_and_admin().await;
        let streams = Streams::open(&second_admin.caller, &idle.id).await;
        let path = format!("/users/{}", second_admin.id);
        admin()
            .await
            .patch(&path, &json!({"password": "another passphrase"}))
            .await
            .expect_status(200);
        streams
            .expect_unauthorized(&idle.user.caller, &idle.id)
            .await
    })
    .await;
}

#[tokio::test]
async fn deleted_user_ends_streams() {
    repeat_until_below(END_DEADLINE, async || {
        let (idle, second_admin) = foreign_environment_and_admin().await;
        let streams = Streams::open(&second_admin.caller, &idle.id).await;
        admin()
            .await
            .delete(&format!("/users/{}", second_admin.id))
            .await
            .expect_status(204);
        streams
            .expect_unauthorized(&idle.user.caller, &idle.id)
            .await
    })
    .await;
}

#[tokio::test]
async fn lost_visibility_ends_streams() {
    repeat_until_below(END_DEADLINE, async || {
        let (idle, second_admin) = foreign_environment_and_admin().await;
        let own = second_admin.caller.create(&small()).await;
        let path = format!("/environments/{own}/logs?follow=true");
        let mut kept = Events::open(&second_admin.caller, &path).await;
        let streams = Streams::open(&second_admin.caller, &idle.id).await;
        admin()
            .await
            .patch(
                &format!("/users/{}", second_admin.id),
                &json!({"role": "user"}),
            )
            .await
            .expect_status(200);
        let took = streams
            .expect_end(404, 403, 4404, &idle.user.caller, &idle.id)
            .await;
        let foreign = format!("/environments/{}", idle.id);
        second_admin
            .caller
            .get(&foreign)
            .await
            .expect_error(404, "not_found");
        // Its login and its own environments stay valid.
        let quiet = timeout(Duration::from_millis(200), kept.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        took
    })
    .await;
}

#[tokio::test]
async fn logout_ends_streams_opened_with_a_ticket() {
    repeat_until_below(END_DEADLINE, async || {
        let idle = idle().await;
        let login = idle.user.log_in_again().await;
        let body = json!({"environment_id": idle.id, "action": "logs"});
        let ticket = login.post("/auth/tickets", &body).await.expect_status(201);
        let path = format!(
            "/environments/{}/logs?follow=true&ticket={}",
            idle.id,
            ticket["ticket"].as_str().unwrap()
        );
        let events = Events::open(&login.at_new_address(), &path).await;
        login
            .post("/auth/logout", &json!(null))
            .await
            .expect_status(204);
        let begun = Instant::now();
        let rest = timeout(TIMEOUT, events.read_to_end())
            .await
            .expect("it ends");
        let took = begun.elapsed();
        assert_eq!(rest.last().unwrap().name, "error");
        took
    })
    .await;
}

#[tokio::test]
async fn valid_credential_keeps_its_stream_open() {
    let idle = idle().await;
    let user = new_user().await;
    let (_, key) = user.key(json!({})).await;
    let mut events = Events::open(&key, "/events?follow=true").await;
    // The logout of another user does not end it.
    let login = idle.user.log_in_again().await;
    login
        .post("/auth/logout", &json!(null))
        .await
        .expect_status(204);
    let quiet = timeout(END_DEADLINE, events.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}
