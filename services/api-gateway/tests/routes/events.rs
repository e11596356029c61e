//! `/environments/{id}/events` and `/events`.

use serde_json::{Value, json};

use crate::support::boxes::{script, small};
use crate::support::caller::{Caller, admin, new_user};
use crate::support::eventually;
use crate::support::sse::Events;

/// Waits for a page with this many events: an event is published a moment after its change.
async fn page(caller: &Caller, path: &str, total: usize) -> Value {
    eventually(&format!("{total} events at {path}"), async || {
        let page = caller.get(path).await.expect_status(200);
        (page["total"] == total).then_some(page)
    })
    .await
}

fn kinds(events: &Value) -> Vec<&str> {
    events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn events_are_listed_newest_first_with_the_reason_of_the_end() {
    let user = new_user().await;
    let until_signalled = script("while [ ! -e /tmp/go ]; do sleep 1; done; exit 3");
    let id = user.caller.create_running(&until_signalled).await;
    user.caller.sh(&id, "touch /tmp/go").await;
    user.caller.wait_until_ended(&id).await;
    let path = format!("/environments/{id}/events");
    let list = page(&user.caller, &path, 3).await;
    assert_eq!(kinds(&list["events"]), ["failed", "running", "created"]);
    assert_eq!((&list["limit"], &list["offset"]), (&json!(100), &json!(0)));
    let last = &list["events"][0];
    assert_eq!(last["environment_id"], id.as_str());
    assert_eq!(
        (&last["status"], &last["status_reason"], &last["exit_code"]),
        (&json!("failed"), &json!("EXITED"), &json!(3))
    );
    assert!(last["at"].is_string() && last["id"].is_u64());
    let one = user
        .caller
        .get(&format!("{path}?limit=1&offset=1"))
        .await
        .expect_status(200);
    assert_eq!(kinds(&one["events"]), ["running"]);
    assert_eq!(one["total"], 3);
    for query in ["limit=0", "limit=1001", "offset=x", "since=1"] {
        user.caller
            .get(&format!("{path}?{query}"))
            .await
            .expect_error(400, "validation_failed");
    }
}

#[tokio::test]
async fn executions_of_an_environment_with_the_label_have_events() {
    let user = new_user().await;
    let mut labelled = small();
    labelled["labels"] = json!({"execution-events": "true"});
    let id = user.caller.create_running(&labelled).await;
    let executions = format!("/environments/{id}/executions");
    let start = json!({"command": ["sh", "-c", "exit 3"]});
    let started = user.caller.post(&executions, &start).await;
    let execution = started.expect_status(201)["id"].clone();
    let list = page(&user.caller, &format!("/environments/{id}/events"), 4).await;
    let events = &list["events"];
    let expected = ["execution_ended", "execution_started", "running", "created"];
    assert_eq!(kinds(events), expected);
    let ended = json!({"id": execution, "status": "exited", "exit_code": 3});
    assert_eq!(events[0]["execution"], ended);
    let begun = json!({"id": execution, "status": "running"});
    assert_eq!(events[1]["execution"], begun);
    assert_eq!(events[0]["status"], "running");
}

#[tokio::test]
async fn followed_events_are_sent_in_order_and_end_with_the_environment() {
    let user = new_user().await;
    let id = user.caller.create(&small()).await;
    let path = format!("/environments/{id}/events?follow=true");
    let mut events = Events::open(&user.caller, &path).await;
    for (kind, status) in [("created", "pending"), ("running", "running")] {
        let event = events.next().await.unwrap();
        let body = event.json();
        assert_eq!(
            (&body["kind"], &body["status"]),
            (&json!(kind), &json!(status))
        );
        assert_eq!(body["id"], event.number(), "the SSE id too");
    }
    user.caller
        .patch(
            &format!("/environments/{id}"),
            &json!({"labels": {"a": "b"}}),
        )
        .await
        .expect_status(200);
    let updated = events.next().await.unwrap();
    assert_eq!(updated.json()["kind"], "updated");
    user.caller
        .delete(&format!("/environments/{id}"))
        .await
        .expect_status(204);
    let rest = events.read_to_end().await;
    let names: Vec<&str> = rest.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["message", "message", "end"], "{rest:?}");
    assert_eq!(rest[0].json()["kind"], "terminating");
    assert_eq!(rest[1].json()["kind"], "terminated");
    assert_eq!(rest[2].json(), json!({"status": "terminated"}));

    // Each replica resumes in the same way, and repeats the end.
    for gateway in 0..user.caller.gateways() {
        let last = Some(updated.number());
        let again = Events::resume(&user.caller, gateway, &path, last)
            .await
            .read_to_end()
            .await;
        assert_eq!(again, rest);
        let all = Events::resume(&user.caller, gateway, &path, None)
            .await
            .read_to_end()
            .await;
        assert_eq!(all.len(), 6, "{all:?}");
    }
}

#[tokio::test]
async fn event_list_shows_own_environments_only() {
    let (user, stranger) = (new_user().await, new_user().await);
    let mut live = Events::open(&user.caller, "/events?follow=true").await;
    let theirs = stranger.caller.create_running(&small()).await;
    let id = user.caller.create_running(&small()).await;
    let seen = live.take(2).await;
    for (event, kind) in seen.iter().zip(["created", "running"]) {
        assert_eq!(event.json()["environment_id"], id.as_str());
        assert_eq!(event.json()["kind"], kind);
    }
    let list = page(&user.caller, "/events", 2).await;
    assert_eq!(kinds(&list["events"]), ["running", "created"]);
    // Resumed after the first event, at each replica.
    for gateway in 0..user.caller.gateways() {
        let mut again = Events::resume(
            &user.caller,
            gateway,
            "/events?follow=true",
            Some(seen[0].number()),
        )
        .await;
        assert_eq!(again.next().await.unwrap(), seen[1]);
    }
    // A key sees the events of its environments, an administrator all events.
    let key = stranger.key_for(&theirs, "read").await;
    assert_eq!(
        page(&key, "/events", 2).await["events"][0]["environment_id"],
        theirs.as_str()
    );
    let all = admin()
        .await
        .get("/events?limit=1000")
        .await
        .expect_status(200);
    let ids: std::collections::BTreeSet<&str> = all["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["environment_id"].as_str().unwrap())
        .collect();
    assert!(ids.contains(id.as_str()) && ids.contains(theirs.as_str()));
}
