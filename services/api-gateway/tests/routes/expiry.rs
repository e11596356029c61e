//! Expiry of logins, tickets and keys, and clients that stop answering, on a system with short
//! lifetimes.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep_until, timeout};

use crate::support::boxes::{OwnedEnvironment, small};
use crate::support::caller::{Caller, PASSWORD, admin_of, new_user_with_role, send};
use crate::support::socket::{Socket, handshake};
use crate::support::sse::Events;
use crate::support::streams::{END_DEADLINE, Streams};
use crate::support::system::{PING_S, TICKET_S, TOKEN_S, short_lived};
use crate::support::{eventually, repeat_until_below};

static OWNED: OnceCell<OwnedEnvironment> = OnceCell::const_new();

/// A running environment, and its owner with a key that does not expire.
async fn owned() -> &'static OwnedEnvironment {
    OWNED
        .get_or_init(async || {
            let mut user = new_user_with_role(&admin_of(short_lived().await).await, "user").await;
            user.caller = user.key(json!({})).await.1;
            let id = user.caller.create_running(&small()).await;
            OwnedEnvironment { user, id }
        })
        .await
}

/// The `expires_at` of an answer, on this process's clock.
fn expiry_of(answer: &Value) -> Instant {
    let at: DateTime<Utc> = answer["expires_at"].as_str().unwrap().parse().unwrap();
    Instant::now() + (at - Utc::now()).to_std().unwrap()
}

/// Asserts that every kind of request is refused on every replica.
async fn expect_unauthorized_everywhere(caller: &Caller, id: &str) {
    let exec = json!({"command": ["true"]});
    let at = format!("/environments/{id}");
    let ticket = json!({"environment_id": id, "action": "logs"});
    for gateway in 0..caller.gateways() {
        for (method, path, body) in [
            (Method::GET, "/auth/me".to_owned(), None),
            (Method::POST, "/auth/logout".to_owned(), None),
            (Method::POST, "/auth/tickets".to_owned(), Some(&ticket)),
            (Method::GET, "/api-keys".to_owned(), None),
            (Method::GET, "/environments".to_owned(), None),
            (Method::POST, "/environments".to_owned(), Some(&small())),
            (Method::GET, at.clone(), None),
            (Method::DELETE, at.clone(), None),
            (Method::POST, format!("{at}/exec"), Some(&exec)),
            (Method::GET, format!("{at}/logs"), None),
            (Method::GET, format!("{at}/logs?follow=true"), None),
            (Method::GET, "/events?follow=true".to_owned(), None),
        ] {
            let mut request = caller.request_on(gateway, method, &path);
            if let Some(body) = body {
                request = request.json(body);
            }
            send(request).await.expect_error(401, "unauthorized");
        }
        let attach = Socket::open_on(caller, gateway, id, "").await;
        assert_eq!(attach.err().unwrap().0, 401);
    }
}

async fn ticket(caller: &Caller, id: &str, action: &str) -> (String, Instant) {
    let body = json!({"environment_id": id, "action": action});
    let made = caller.post("/auth/tickets", &body).await.expect_status(201);
    (
        made["ticket"].as_str().unwrap().to_owned(),
        expiry_of(&made),
    )
}

#[tokio::test]
async fn expired_token_is_refused_and_ends_its_streams() {
    repeat_until_below(END_DEADLINE, let_token_expire).await;
}

/// Waits until a token expires, and returns how long its streams last after that.
async fn let_token_expire() -> Duration {
    let owned = owned().await;
    let (owner, id) = (&owned.user.caller, &owned.id);
    let anonymous = owner.at_new_address();
    let reply = anonymous
        .login(&owned.user.username, PASSWORD)
        .await
        .expect_status(200);
    let expires = expiry_of(&reply);
    assert!(expires <= Instant::now() + Duration::from_secs(TOKEN_S));
    let login = anonymous.with_token(reply["token"].as_str().unwrap());
    let mut streams = Streams::open(&login, id).await;
    // A stream that was opened with a ticket outlives the ticket, but not its login.
    for gateway in 0..anonymous.gateways() {
        let (logs, _) = ticket(&login, id, "logs").await;
        let path = format!("/environments/{id}/logs?follow=true&ticket={logs}");
        let events = Events::resume(&anonymous, gateway, &path, None).await;
        streams.events.push(events);
        let (attach, _) = ticket(&login, id, "attach").await;
        let query = format!("{}&ticket={attach}", streams.query());
        let mut socket = Socket::connect(handshake(&anonymous, gateway, id, &query))
            .await
            .unwrap_or_else(|(status, body)| panic!("{status} {body}"));
        socket.ready().await;
        streams.sockets.push(socket);
    }
    // Nothing is refused before the expiry, less a margin for the clocks.
    let before = expires - Duration::from_millis(300);
    assert!(Instant::now() < before, "the streams were opened in time");
    streams.expect_silence_until(before).await;
    sleep_until(expires).await;
    let refused = expect_unauthorized_everywhere(&login, id);
    let ended = streams.expect_unauthorized(owner, id);
    let ((), took) = tokio::join!(refused, ended);
    for gateway in 0..owner.gateways() {
        let environment = owner.get_on(gateway, &format!("/environments/{id}")).await;
        assert_eq!(
            environment.expect_status(200)["status"],
            "running",
            "no request was executed"
        );
    }
    took
}

#[tokio::test]
async fn expired_key_and_its_tickets_are_refused() {
    let owned = owned().await;
    let (id, key) = owned.user.key(json!({"expires_in": 1})).await;
    key.get(&format!("/environments/{}", owned.id))
        .await
        .expect_status(200);
    let (logs, ticket_ends) = ticket(&key, &owned.id, "logs").await;
    // The API takes whole days only.
    let ended = format!("UPDATE auth.api_keys SET expires_at = now() WHERE id = '{id}'");
    let postgres = short_lived().await.postgres.as_ref().unwrap();
    postgres.execute(&[&ended]).await.unwrap();
    // Not a change by auth: a gateway that remembers the key notices it when it renews its lease.
    for gateway in 0..key.gateways() {
        eventually("the key has expired", async || {
            let answer = key.get_on(gateway, "/auth/me").await;
            (answer.status == 401).then_some(())
        })
        .await;
    }
    let path = format!("/environments/{}/logs?ticket={logs}", owned.id);
    let with_ticket = key.without_token().get(&path).await;
    with_ticket.expect_error(401, "unauthorized");
    assert!(
        Instant::now() < ticket_ends,
        "the ticket itself had not expired"
    );
    expect_unauthorized_everywhere(&key, &owned.id).await;
}

#[tokio::test]
async fn expired_ticket_is_refused() {
    let owned = owned().await;
    let (owner, id) = (&owned.user.caller, &owned.id);
    let browser = owner.at_new_address();
    let mut late = Vec::new();
    for gateway in 0..browser.gateways() {
        for action in ["logs", "attach"] {
            let (ticket, ends) = ticket(owner, id, action).await;
            assert!(ends <= Instant::now() + Duration::from_secs(TICKET_S));
            late.push((gateway, action, ticket, ends));
        }
    }
    for (gateway, action, ticket, ends) in late {
        sleep_until(ends).await;
        if action == "logs" {
            for path in ["logs?", "logs?follow=true&"] {
                let path = format!("/environments/{id}/{path}ticket={ticket}");
                let refused = browser.get_on(gateway, &path).await;
                refused.expect_error(401, "unauthorized");
            }
        } else {
            let query = format!("ticket={ticket}");
            let refused = Socket::connect(handshake(&browser, gateway, id, &query)).await;
            let (status, body) = refused.err().unwrap();
            assert_eq!((status, &body["error"]), (401, &json!("unauthorized")));
        }
    }
}

#[tokio::test]
async fn silent_client_is_closed_with_4408_and_its_command_killed() {
    let owned = owned().await;
    let (owner, id) = (&owned.user.caller, &owned.id);
    let mut silent = Vec::new();
    for gateway in 0..owner.gateways() {
        let query =
            format!("tty=false&command=sh&command=-c&command=sleep%20715{gateway}%3B%20true");
        let mut socket = Socket::open_on(owner, gateway, id, &query).await.unwrap();
        let session = socket.ready().await;
        silent.push((socket, session));
    }
    // A client that does not read sends no pongs. It reads when the gateway has closed the connection.
    tokio::time::sleep(Duration::from_secs(2 * PING_S + 4)).await;
    for (mut socket, session) in silent {
        let output = timeout(END_DEADLINE, socket.read_to_end()).await.unwrap();
        assert_eq!(output.close.0, 4408, "{output:?}");
        assert!(output.exit.is_none(), "{output:?}");
        // Its command waits for it.
        let query = format!("session_id={session}");
        let mut resumed = Socket::open(owner, id, &query).await;
        assert_eq!(resumed.ready().await, session);
        resumed.socket.close(None).await.unwrap();
    }
    crate::support::eventually_some("the commands are killed", END_DEADLINE, async || {
        (!owner.has_process(id, "sleep 715").await).then_some(())
    })
    .await;
}
