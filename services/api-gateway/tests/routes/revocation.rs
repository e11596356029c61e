//! Streams end with their credential, within five seconds, on whichever replica they run.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::support::boxes::{Idle, idle};
use crate::support::caller::{Caller, User, admin, someone};
use crate::support::socket::Socket;
use crate::support::sse::Events;
use crate::support::system::shared;
use crate::support::within;

const AT_MOST: Duration = Duration::from_secs(5);

/// One stream of each kind, on both replicas.
struct Streams {
    events: Vec<Events>,
    sockets: Vec<Socket>,
    mark: String,
}

impl Streams {
    async fn open(caller: &Caller, id: &str) -> Self {
        let mark = format!("6{:06}", rand::random::<u32>() % 1_000_000);
        let command = format!("tty=false&command=sh&command=-c&command=sleep%20{mark}%3B%20true");
        let mut streams = Self {
            events: Vec::new(),
            sockets: Vec::new(),
            mark,
        };
        for gateway in 0..caller.gateways() {
            for path in [
                format!("/environments/{id}/logs?follow=true"),
                "/events?follow=true".to_owned(),
            ] {
                let events = Events::resume(caller, gateway, &path, None).await;
                streams.events.push(events);
            }
            let mut socket = Socket::open_on(caller, gateway, id, &command)
                .await
                .unwrap_or_else(|(status, body)| panic!("{status} {body}"));
            socket.ready().await;
            streams.sockets.push(socket);
        }
        streams
    }

    /// All have ended by the deadline, each saying why; `still` finds what ran.
    async fn end(self, still: &Caller, id: &str) {
        let deadline = Instant::now() + AT_MOST;
        let left = || deadline.saturating_duration_since(Instant::now());
        for events in self.events {
            let rest = timeout(left(), events.rest())
                .await
                .expect("events end in time");
            let last = rest.last().expect("a last word");
            assert_eq!(
                (last.name.as_str(), &last.json()["code"]),
                ("error", &json!(401))
            );
        }
        for mut socket in self.sockets {
            let said = timeout(left(), socket.rest())
                .await
                .expect("sockets close in time");
            assert_eq!(said.close.0, 4401, "{said:?}");
            assert!(said.exit.is_none() && said.error.is_some(), "{said:?}");
        }
        let text = format!("sleep {}", self.mark);
        within(AT_MOST, "their commands are killed", async || {
            (!still.runs(id, &text).await).then_some(())
        })
        .await;
    }
}

/// An environment of its owner's, and somebody else who administers it.
async fn administered() -> (&'static Idle, User) {
    let chief = crate::support::caller::new_user(admin().await, "admin").await;
    (idle().await, chief)
}

#[tokio::test]
async fn streams_end_with_a_logout() {
    let idle = idle().await;
    let login = idle.user.log_in_again().await;
    let streams = Streams::open(&login, &idle.id).await;
    login.post("/auth/logout", &json!(null)).await.is(204);
    streams.end(&idle.user.caller, &idle.id).await;
}

#[tokio::test]
async fn streams_end_with_a_revoked_key() {
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
async fn streams_end_with_a_key_that_expires() {
    let idle = idle().await;
    let (id, key) = idle.user.key(json!({"expires_in": 1})).await;
    // Days are the shortest that one can ask for.
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
}

#[tokio::test]
async fn streams_end_with_a_new_password() {
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
async fn streams_end_with_their_user() {
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
async fn a_stream_that_a_ticket_opened_ends_with_the_login_behind_it() {
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
async fn a_stream_whose_credential_stays_good_goes_on() {
    let idle = idle().await;
    let user = someone().await;
    let (_, key) = user.key(json!({})).await;
    let mut events = Events::open(&key, "/events?follow=true").await;
    // Somebody else's end is not its own.
    let login = idle.user.log_in_again().await;
    login.post("/auth/logout", &json!(null)).await.is(204);
    let quiet = timeout(AT_MOST, events.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}
