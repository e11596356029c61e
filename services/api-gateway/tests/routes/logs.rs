//! `GET /environments/{id}/logs`, stored and followed.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::boxes::{idle, script, small};
use crate::support::caller::{new_user, send};
use crate::support::eventually;
use crate::support::sse::{Event, Events};

fn messages(body: &Value) -> Vec<&str> {
    body["logs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["message"].as_str().unwrap())
        .collect()
}

fn followed(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| event.json()["message"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn lines_have_time_stream_and_text_during_and_after_the_run() {
    let user = new_user().await;
    let begun = Utc::now();
    // Two pipes have no common order, so each line is written when the one before has been read.
    let text = "until_exists() { while [ ! -e $1 ]; do sleep 0.1; done; }; \
                echo one; until_exists /tmp/1; echo two >&2; until_exists /tmp/2; printf three";
    let id = user.caller.create_running(&script(text)).await;
    let path = format!("/environments/{id}/logs");
    for (count, last, stream) in [(1, "one", "stdout"), (2, "two", "stderr")] {
        let while_running = eventually("another line", async || {
            let body = user.caller.get(&path).await.expect_status(200);
            (body["logs"].as_array().unwrap().len() >= count).then_some(body)
        })
        .await;
        assert_eq!(messages(&while_running)[count - 1..], [last]);
        assert_eq!(while_running["logs"][count - 1]["stream"], stream);
        user.caller.sh(&id, &format!("touch /tmp/{count}")).await;
    }
    user.caller.wait_until_ended(&id).await;
    for gateway in 0..user.caller.gateways() {
        let body = user.caller.get_on(gateway, &path).await.expect_status(200);
        assert_eq!(messages(&body), ["one", "two", "three"]);
        let streams: Vec<&Value> = body["logs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| &l["stream"])
            .collect();
        assert_eq!(streams, ["stdout", "stderr", "stdout"]);
        for line in body["logs"].as_array().unwrap() {
            let at: DateTime<Utc> = line["timestamp"].as_str().unwrap().parse().unwrap();
            assert!(
                at > begun - chrono::TimeDelta::seconds(1) && at <= Utc::now(),
                "{line}"
            );
        }
    }
}

#[tokio::test]
async fn tail_timestamps_and_since_select_lines() {
    let user = new_user().await;
    let id = user
        .caller
        .create(&script(
            "for i in 1 2 3; do echo early $i; done; sleep 1.2; echo late",
        ))
        .await;
    user.caller.wait_until_ended(&id).await;
    let path = format!("/environments/{id}/logs");
    let all = user.caller.get(&path).await.expect_status(200);
    assert_eq!(messages(&all), ["early 1", "early 2", "early 3", "late"]);
    for (query, expected) in [
        ("tail=0", &[][..]),
        ("tail=1", &["late"]),
        ("tail=3", &["early 2", "early 3", "late"]),
        ("tail=100", &["early 1", "early 2", "early 3", "late"]),
    ] {
        let body = user
            .caller
            .get(&format!("{path}?{query}"))
            .await
            .expect_status(200);
        assert_eq!(messages(&body), expected, "{query}");
    }
    let bare = user
        .caller
        .get(&format!("{path}?timestamps=false"))
        .await
        .expect_status(200);
    assert!(bare["logs"][0].get("timestamp").is_none());
    assert!(all["logs"][0].get("timestamp").is_some(), "the default");
    let late = &all["logs"][3]["timestamp"];
    let request = user
        .caller
        .request(Method::GET, &path)
        .query(&[("since", late.as_str().unwrap())]);
    assert_eq!(messages(&send(request).await.expect_status(200)), ["late"]);
    for query in [
        "tail=-1",
        "tail=x",
        "timestamps=1",
        "follow=yes",
        "since=yesterday",
        "lines=5",
        "tail=1&tail=2",
    ] {
        let answer = user.caller.get(&format!("{path}?{query}")).await;
        answer.expect_error(400, "validation_failed");
    }
}

#[tokio::test]
async fn idle_environment_has_no_logs_and_exec_output_is_not_logged() {
    let idle = idle().await;
    idle.user.caller.sh(&idle.id, "echo private").await;
    let body = idle
        .user
        .caller
        .get(&format!("/environments/{}/logs", idle.id))
        .await
        .expect_status(200);
    assert_eq!(body, json!({"logs": []}));
}

#[tokio::test]
async fn pending_environment_has_empty_logs() {
    let user = new_user().await;
    let id = user.caller.create(&small()).await;
    let body = user
        .caller
        .get(&format!("/environments/{id}/logs"))
        .await
        .expect_status(200);
    assert_eq!(body, json!({"logs": []}));
}

#[tokio::test]
async fn followed_lines_have_ids_and_end_with_the_final_status() {
    let user = new_user().await;
    let text = "echo one; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo two >&2; exit 4";
    let id = user.caller.create(&script(text)).await;
    // Opened while the environment is pending.
    let path = format!("/environments/{id}/logs?follow=true");
    let mut events = Events::open(&user.caller, &path).await;
    let first = events.next().await.unwrap();
    assert_eq!(first.name, "message");
    let line = first.json();
    assert_eq!(
        (&line["stream"], &line["message"]),
        (&json!("stdout"), &json!("one"))
    );
    assert!(line["timestamp"].is_string());
    // The second line is written after the first has arrived here.
    user.caller.sh(&id, "touch /tmp/go").await;
    let second = events.next().await.unwrap();
    assert_eq!(second.json()["stream"], "stderr");
    assert!(second.number() > first.number());
    let rest = events.read_to_end().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!((rest[0].name.as_str(), &rest[0].id), ("end", &None));
    let end = rest[0].json();
    assert_eq!(
        (&end["status"], &end["status_reason"], &end["exit_code"]),
        (&json!("failed"), &json!("EXITED"), &json!(4))
    );

    // Each replica replays the same after the end.
    for gateway in 0..user.caller.gateways() {
        let again = Events::resume(&user.caller, gateway, &path, None)
            .await
            .read_to_end()
            .await;
        assert_eq!(followed(&again[..2]), ["one", "two"]);
        assert_eq!((again[2].name.as_str(), again.len()), ("end", 3));
        assert_eq!(again[1].id, second.id);
    }
    let tail = Events::open(&user.caller, &format!("{path}&tail=1&timestamps=false"))
        .await
        .read_to_end()
        .await;
    assert_eq!(tail.len(), 2);
    assert_eq!(
        tail[0].json(),
        json!({"stream": "stderr", "message": "two"})
    );
}

#[tokio::test]
async fn stream_resumes_across_gateways_without_loss_or_repeat() {
    let user = new_user().await;
    let text = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo line $i; [ $((i % 20)) = 0 ] && sleep 0.1; done";
    let id = user.caller.create(&script(text)).await;
    let path = format!("/environments/{id}/logs?follow=true");
    let mut seen = Vec::new();
    let mut last = None;
    let mut gateway = 0;
    // Interrupted repeatedly, and resumed at the other gateway.
    let end = loop {
        let mut events = Events::resume(&user.caller, gateway, &path, last).await;
        gateway = (gateway + 1) % user.caller.gateways();
        let mut end = None;
        for _ in 0..37 {
            let event = events.next().await.expect("an end before the end");
            if event.name == "end" {
                end = Some(event);
                break;
            }
            last = Some(event.number());
            seen.push(event.json()["message"].as_str().unwrap().to_owned());
        }
        if let Some(end) = end {
            break end;
        }
    };
    let expected: Vec<String> = (1..=600).map(|n| format!("line {n}")).collect();
    assert_eq!(seen, expected);
    assert_eq!(end.json()["status"], "terminated");
    // A client that has all lines receives only the end.
    let rest = Events::resume(&user.caller, gateway, &path, last)
        .await
        .read_to_end()
        .await;
    assert_eq!(rest.len(), 1, "{rest:?}");
}

#[tokio::test]
async fn invalid_last_event_id_returns_400() {
    let idle = idle().await;
    let request = idle
        .user
        .caller
        .request(
            Method::GET,
            &format!("/environments/{}/logs?follow=true", idle.id),
        )
        .header("last-event-id", "yesterday");
    let message = send(request).await.expect_error(400, "validation_failed");
    assert!(message.starts_with("Last-Event-ID: "), "{message}");
}

#[tokio::test]
async fn idle_stream_sends_a_comment_every_fifteen_seconds() {
    let idle = idle().await;
    let path = format!("/environments/{}/logs?follow=true", idle.id);
    let begun = Instant::now();
    let mut events = Events::open(&idle.user.caller, &path).await;
    let block = events.next_block().await.unwrap();
    assert!(block.is_comment, "{block:?}");
    let took = begun.elapsed();
    assert!(
        took > Duration::from_secs(13) && took < Duration::from_secs(20),
        "{took:?}"
    );
}

#[tokio::test]
async fn deleted_environment_ends_the_stream_and_keeps_its_lines() {
    let user = new_user().await;
    let id = user
        .caller
        .create_running(&script("echo begun; sleep 600"))
        .await;
    let path = format!("/environments/{id}/logs");
    let mut events = Events::open(&user.caller, &format!("{path}?follow=true")).await;
    assert_eq!(events.next().await.unwrap().json()["message"], "begun");
    user.caller
        .delete(&format!("/environments/{id}?force=true"))
        .await
        .expect_status(204);
    let rest = events.read_to_end().await;
    let last = rest.last().unwrap();
    assert_eq!(
        (last.name.as_str(), &last.json()["status_reason"]),
        ("end", &json!("DELETED"))
    );
    user.caller.wait_until_ended(&id).await;
    assert_eq!(
        messages(&user.caller.get(&path).await.expect_status(200)),
        ["begun"]
    );
}

#[tokio::test]
async fn many_lines_are_returned_in_one_reply() {
    let user = new_user().await;
    let text = "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo $i; done";
    let id = user.caller.create(&script(text)).await;
    user.caller.wait_until_ended(&id).await;
    let body = user
        .caller
        .get(&format!("/environments/{id}/logs"))
        .await
        .expect_status(200);
    let expected: Vec<String> = (1..=5000).map(|n| n.to_string()).collect();
    assert_eq!(messages(&body), expected);
}

#[tokio::test]
async fn pieces_of_long_and_unfinished_lines_are_marked_and_survive_a_forced_delete() {
    let user = new_user().await;
    let text =
        "head -c 16383 /dev/zero | tr '\\0' a; printf '€b\\n'; printf 'continue? '; sleep 600";
    let id = user.caller.create_running(&script(text)).await;
    let path = format!("/environments/{id}/logs");
    let body = eventually("the unfinished line", async || {
        let body = user.caller.get(&path).await.expect_status(200);
        let is_shown = messages(&body).contains(&"continue? ");
        is_shown.then_some(body)
    })
    .await;
    let long = "a".repeat(16_383);
    let pieces = [(long.as_str(), true), ("€b", false), ("continue? ", true)];
    let read = |body: &Value| -> Vec<(String, bool)> {
        let lines = body["logs"].as_array().unwrap();
        lines
            .iter()
            .map(|line| {
                let message = line["message"].as_str().unwrap().to_owned();
                (message, line.get("partial") == Some(&json!(true)))
            })
            .collect()
    };
    let expected = pieces.map(|(message, partial)| (message.to_owned(), partial));
    assert_eq!(read(&body), expected);
    assert!(body["logs"][1].get("partial").is_none(), "absent: false");
    for (tail, from) in [(1, 2), (2, 0), (3, 0)] {
        let path = format!("{path}?tail={tail}");
        let body = user.caller.get(&path).await.expect_status(200);
        assert_eq!(read(&body), expected[from..], "{tail}");
    }
    let followed = format!("{path}?follow=true");
    let mut resumed = Events::resume(&user.caller, 0, &followed, Some(1)).await;
    assert_eq!(resumed.next().await.unwrap().json()["message"], "€b");
    drop(resumed);

    user.caller
        .delete(&format!("/environments/{id}?force=true"))
        .await
        .expect_status(204);
    user.caller.wait_until_ended(&id).await;
    let body = user.caller.get(&path).await.expect_status(200);
    assert_eq!(read(&body), expected);
}

#[tokio::test]
async fn lines_that_are_no_longer_kept_are_counted() {
    let user = new_user().await;
    let id = user.caller.create(&script("seq 1 100000")).await;
    user.caller.wait_until_ended(&id).await;
    let path = format!("/environments/{id}/logs");
    for query in ["", "?tail=100000", "?tail=1000000"] {
        let body = user
            .caller
            .get(&format!("{path}{query}"))
            .await
            .expect_status(200);
        let kept = messages(&body);
        assert_eq!(kept.last(), Some(&"100000"), "{query}");
        assert!(kept.len() < 100_000, "{query}");
        assert_eq!(body["lost"], 100_000 - kept.len(), "{query}");
    }
    let body = user
        .caller
        .get(&format!("{path}?tail=10"))
        .await
        .expect_status(200);
    assert_eq!((messages(&body).len(), body.get("lost")), (10, None));
    let mut events = Events::open(&user.caller, &format!("{path}?follow=true")).await;
    let first = events.next().await.unwrap();
    assert_eq!(first.name, "gap");
    assert!(first.json()["lost"].as_u64().unwrap() > 0);
}
