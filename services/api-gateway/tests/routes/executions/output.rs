//! The output of executions: bytes of one stream, and events of both.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::boxes::idle;
use crate::support::caller::send;
use crate::support::eventually;
use crate::support::executions::{Received, is_active};
use crate::support::sse::{Event, Events};

fn lines(last: u32) -> String {
    (1..=last).map(|n| format!("{n}\n")).collect()
}

#[tokio::test]
async fn one_stream_is_its_bytes_from_any_offset() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let text = "printf 'a\\377\\000b'; echo err >&2; exec sleep 60";
    let execution = caller.start_sh(&idle.id, text).await;
    eventually("the output", async || {
        let record = execution.get().await;
        let is_written = record["stdout_bytes"] == 4 && record["stderr_bytes"] == 4;
        is_written.then_some(())
    })
    .await;
    // While it runs, and after its end.
    for _ in 0..2 {
        for gateway in 0..caller.gateways() {
            for (query, expected) in [
                ("stream=stdout", &b"a\xff\0b"[..]),
                ("stream=stderr", b"err\n"),
                ("stream=stdout&from=0", b"a\xff\0b"),
                ("stream=stdout&from=3", b"b"),
                ("stream=stdout&from=4", b""),
                ("stream=stdout&follow=false", b"a\xff\0b"),
            ] {
                let path = execution.output(query);
                let answer = caller.request_on(gateway, Method::GET, &path).send().await;
                let answer = answer.unwrap();
                assert_eq!(answer.status(), 200, "{query}");
                let media_type = &answer.headers()["content-type"];
                assert_eq!(media_type, "application/octet-stream");
                assert_eq!(answer.bytes().await.unwrap()[..], *expected, "{query}");
            }
        }
        caller.delete(&execution.path).await.expect_status(204);
    }
    for (query, field) in [
        ("stream=stdout&from=5", "from"),
        ("stream=stdout&from=1-0", "from"),
        ("stream=stdin", "stream"),
        ("follow=true&from=4", "from"),
        ("follow=true&from=5-4", "from"),
        ("follow=true&stream=stderr&from=0-5", "from"),
        ("follow=false&from=0-5", "from"),
        ("follow=1", "follow"),
        ("tail=5", "tail"),
    ] {
        let answer = caller.get(&execution.output(query)).await;
        let message = answer.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{query}: {message}");
    }
    for last in ["yesterday", "5-4"] {
        let request = caller.request(Method::GET, &execution.output("follow=true"));
        let request = request.header("last-event-id", last);
        let message = send(request).await.expect_error(400, "validation_failed");
        assert!(message.starts_with("Last-Event-ID"), "{last}: {message}");
    }
}

#[tokio::test]
async fn both_streams_are_events_until_now_or_until_the_end() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let text = "echo out; echo err >&2; read x; echo $x; exit 3";
    let body = json!({"command": ["sh", "-c", text], "stdin": "open"});
    let execution = caller.start(&idle.id, &body).await;
    let mut following = execution.follow().await;
    let mut first = following.take(2).await;
    let until_now = Events::open(caller, &execution.output("follow=false")).await;
    let until_now = Received::of(until_now.read_to_end().await);
    assert_eq!(
        (until_now.stdout.as_str(), until_now.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert!(is_active(&until_now.end), "{until_now:?}");
    execution
        .stdin("close=false", "later\n")
        .await
        .expect_status(204);
    first.extend(following.read_to_end().await);
    let received = Received::of(first);
    assert_eq!(received.stdout, "out\nlater\n");
    assert_eq!(received.stderr, "err\n");
    assert_eq!(received.missing, 0);
    assert_eq!(received.end, execution.get().await);
    assert_eq!(received.end["exit_code"], 3);
    // Only one of them.
    let path = execution.output("follow=true&stream=stderr");
    let events = Events::open(caller, &path).await.read_to_end().await;
    assert_eq!(events.len(), 2, "{events:?}");
    let expected = json!({"stream": "stderr", "data": "err\n", "offset": 0});
    assert_eq!(
        (events[0].json(), events[1].name.as_str()),
        (expected, "end")
    );
}

#[tokio::test]
async fn event_has_whole_characters_or_base64() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let text = "printf 'a\\342\\202'; sleep 0.5; printf '\\254b\\n'";
    let received = caller.start_sh(&idle.id, text).await.received().await;
    assert_eq!(received.stdout, "a\u{20ac}b\n");
    let execution = caller.start_sh(&idle.id, "printf 'a\\377\\000'").await;
    let events = execution.follow().await.read_to_end().await;
    let mut bytes = Vec::new();
    for event in events.iter().filter(|event| event.name == "message") {
        let data = event.json();
        let has_one = data["data"].is_string() != data["base64"].is_string();
        assert!(has_one, "{data}");
        match data["base64"].as_str() {
            Some(text) => bytes.extend(STANDARD.decode(text).unwrap()),
            None => bytes.extend(data["data"].as_str().unwrap().bytes()),
        }
    }
    assert_eq!(bytes, b"a\xff\0");
    let end = events.last().unwrap();
    assert_eq!((end.name.as_str(), end.id.as_deref()), ("end", Some("3-0")));
}

#[tokio::test]
async fn stream_resumes_on_another_gateway_without_loss_or_repeat() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let body = json!({
        "command": ["sh", "-c", "seq 1 100000; seq 1 10 >&2"],
        "on_full": "block",
        "keep_bytes": 65536,
    });
    let execution = caller.start(&idle.id, &body).await;
    let mut events: Vec<Event> = Vec::new();
    let mut gateway = 0;
    while events.last().is_none_or(|event| event.name != "end") {
        let last = events.last().and_then(|event| event.id.clone());
        let mut stream = match last {
            // In turn by the header and by the parameter.
            Some(last) if events.len().is_multiple_of(2) => {
                let path = execution.output(&format!("follow=true&from={last}"));
                Events::resume(caller, gateway, &path, None).await
            }
            Some(last) => execution.resume(gateway, &last).await,
            None => execution.follow().await,
        };
        gateway = (gateway + 1) % caller.gateways();
        events.push(stream.next().await.expect("another event"));
        for _ in 0..2 {
            // After the event `end` the stream ends.
            events.extend(stream.next().await);
        }
    }
    let received = Received::of(events);
    assert!(
        received.stdout == lines(100_000),
        "{} bytes",
        received.stdout.len()
    );
    assert_eq!(received.stderr, lines(10));
    assert_eq!(received.missing, 0);
}

#[tokio::test]
async fn dropped_output_is_counted_and_the_newest_is_kept() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let body = json!({"command": ["seq", "1", "100000"], "keep_bytes": 4096});
    let execution = caller.start(&idle.id, &body).await;
    let record = execution.ended().await;
    assert_eq!(record["exit_code"], 0, "nobody read its output: {record}");
    let all = lines(100_000);
    let newest = &all[all.len() - 4096..];
    assert_eq!(record["stdout_bytes"], all.len());
    assert_eq!(execution.stdout().await, newest);
    let received = execution.received().await;
    assert_eq!(received.stdout, newest);
    assert_eq!(received.missing, (all.len() - 4096) as u64);
    // A reader that asks for dropped bytes gets no other ones.
    let path = execution.output("stream=stdout&from=0");
    let message = caller
        .get(&path)
        .await
        .expect_error(400, "validation_failed");
    assert!(message.starts_with("from"), "{message}");
    let path = execution.output("stream=stderr");
    assert_eq!(caller.get(&path).await.text, "");
}

#[tokio::test]
async fn slow_reader_delays_no_command_that_drops_and_gets_gaps() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let text = "read x; yes 0123456789abcde | head -c 32000000";
    let body = json!({"command": ["sh", "-c", text], "stdin": "open", "keep_bytes": 65536});
    let execution = caller.start(&idle.id, &body).await;
    let stream = execution.follow().await;
    execution
        .stdin("close=false", "go\n")
        .await
        .expect_status(204);
    let begun = Instant::now();
    let record = execution.ended().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    let received = Received::of(stream.read_to_end().await);
    assert_eq!(received.end, record);
    assert!(received.missing > 0);
    let sum = received.stdout.len() as u64 + received.missing;
    assert_eq!(sum, 32_000_000);
    assert!(received.stdout.ends_with("0123456789abcde\n"));
}

#[tokio::test]
async fn blocking_command_waits_for_its_reader_who_gets_every_byte() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let body = json!({
        "command": ["seq", "1", "500000"],
        "on_full": "block",
        "keep_bytes": 65536,
    });
    let execution = caller.start(&idle.id, &body).await;
    let written = async || execution.get().await["stdout_bytes"].as_u64().unwrap();
    eventually("the kept output is full", async || {
        (written().await == 65_536).then_some(())
    })
    .await;
    let path = format!("{}?wait=1", execution.path);
    let record: Value = caller.get(&path).await.expect_status(200);
    assert_eq!(record["status"], "running", "{record}");
    assert_eq!(record["stdout_bytes"], 65_536);
    let received = execution.received().await;
    assert!(
        received.stdout == lines(500_000),
        "{} bytes",
        received.stdout.len()
    );
    assert_eq!(received.missing, 0);
    assert_eq!(received.end["exit_code"], 0);
}

/// What a client has not read when its connection is lost is sent again.
#[tokio::test]
async fn stalled_reader_that_is_lost_resumes_a_blocking_command_without_a_gap() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let body = json!({
        "command": ["seq", "1", "2500000"],
        "on_full": "block",
        "keep_bytes": 65536,
    });
    let execution = caller.start(&idle.id, &body).await;
    let mut stalled = execution.follow().await;
    let mut events = stalled.take(2).await;
    let path = format!("{}?wait=1", execution.path);
    eventually("the command waits", async || {
        let before = execution.get().await["stdout_bytes"].clone();
        let after = caller.get(&path).await.expect_status(200);
        assert_eq!(after["status"], "running", "{after}");
        (after["stdout_bytes"] == before).then_some(())
    })
    .await;
    drop(stalled);
    let last = events[1].id.clone().unwrap();
    events.extend(execution.resume(1, &last).await.read_to_end().await);
    let received = Received::of(events);
    assert_eq!(received.missing, 0);
    assert!(
        received.stdout == lines(2_500_000),
        "{} bytes",
        received.stdout.len()
    );
}
