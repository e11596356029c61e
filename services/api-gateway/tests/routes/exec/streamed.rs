//! Exec with events, with a form, and with the user and the stdin of its request.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::answer::Answer;
use crate::support::boxes::idle;
use crate::support::caller::send;
use crate::support::sse::{Event, Events};
use crate::support::{eventually, eventually_some};

/// Runs a command whose output is streamed.
async fn stream(body: &Value) -> Result<Events, Answer> {
    let idle = idle().await;
    let path = format!("/environments/{}/exec", idle.id);
    let request = idle.user.caller.request(Method::POST, &path).json(body);
    Events::send(request).await.unwrap()
}

/// The text of all events of one kind.
fn text(events: &[Event], name: &str) -> String {
    let events = events.iter().filter(|event| event.name == name);
    events
        .map(|event| event.json()["data"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn output_is_streamed_as_it_is_written_and_ends_with_the_exit() {
    let idle = idle().await;
    let file = format!("/tmp/streamed-{:08x}", rand::random::<u32>());
    let wait = format!("until [ -e {file} ]; do sleep 0.1; done");
    let split = "printf 'a\\342\\202'; sleep 0.3; printf '\\254'";
    let script = format!("echo one; echo err >&2; {wait}; {split}; exit 3");
    let body = json!({"command": ["sh", "-c", script]});
    let mut following = stream(&body).await.unwrap();
    let mut events = following.take(2).await;
    // The rest is written after this has arrived.
    idle.user
        .caller
        .sh(&idle.id, &format!("touch {file}"))
        .await;
    events.extend(following.read_to_end().await);
    assert_eq!(text(&events, "stdout"), "one\na\u{20ac}");
    assert_eq!(text(&events, "stderr"), "err\n");
    let exit = events.last().unwrap();
    assert_eq!(exit.name, "exit", "{events:?}");
    let exit = exit.json();
    assert_eq!(
        (&exit["exit_code"], &exit["timed_out"]),
        (&json!(3), &json!(false))
    );
    assert!(exit["duration_ms"].is_u64(), "{exit}");

    let command = json!(["printf", "a\\377\\000"]);
    let body = json!({"command": command, "output_encoding": "base64"});
    let events = stream(&body).await.unwrap().read_to_end().await;
    let data = events[0].json();
    assert_eq!(
        STANDARD.decode(data["base64"].as_str().unwrap()).unwrap(),
        b"a\xff\0"
    );
}

#[tokio::test]
async fn streamed_exec_of_a_silent_command_is_answered_before_its_end() {
    let idle = idle().await;
    let file = format!("/tmp/answered-{:08x}", rand::random::<u32>());
    let script = format!("until [ -e {file} ]; do sleep 0.1; done; exit 3");
    let body = json!({"command": ["sh", "-c", script], "timeout": 600});
    let following = stream(&body).await.unwrap();
    // The command ends only after its answer has begun.
    idle.user
        .caller
        .sh(&idle.id, &format!("touch {file}"))
        .await;
    let events = following.read_to_end().await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].name, "exit");
    assert_eq!(events[0].json()["exit_code"], 3);
}

#[tokio::test]
async fn streamed_output_has_no_limit_and_each_kind_of_exit_its_code() {
    const TOTAL: usize = 12 * 1024 * 1024;
    let script = format!("yes 0123456789abcde | head -c {TOTAL}");
    let body = json!({"command": ["sh", "-c", script]});
    let events = stream(&body).await.unwrap().read_to_end().await;
    let all = text(&events, "stdout");
    assert_eq!(all.len(), TOTAL);
    assert!(all == "0123456789abcde\n".repeat(TOTAL / 16));
    for (command, timeout, code) in [
        (json!(["sh", "-c", "kill -9 $$"]), 30.0, 137),
        (json!(["no-such-program"]), 30.0, 127),
        (json!(["/etc"]), 30.0, 126),
        (json!(["sleep", "60"]), 0.5, 124),
    ] {
        let body = json!({"command": command, "timeout": timeout});
        let events = stream(&body).await.unwrap().read_to_end().await;
        let exit = events.last().unwrap().json();
        assert_eq!(exit["exit_code"], code, "{command}: {exit}");
        assert_eq!(exit["timed_out"], code == 124, "{exit}");
    }
    let body = json!({"command": ["true"], "working_dir": "/no/such/directory"});
    let refused = stream(&body).await.err().unwrap();
    refused.expect_error(400, "working_dir_not_found");
}

#[tokio::test]
async fn client_that_leaves_its_stream_kills_the_command() {
    let idle = idle().await;
    let mark = format!("2{:05}", rand::random::<u16>());
    let script = format!("echo up; sleep {mark}; true");
    let body = json!({"command": ["sh", "-c", script], "timeout": 600});
    let mut events = stream(&body).await.unwrap();
    assert_eq!(events.next().await.unwrap().name, "stdout");
    let sleeping = format!("sleep {mark}");
    let caller = &idle.user.caller;
    eventually("it runs", async || {
        caller.has_process(&idle.id, &sleeping).await.then_some(())
    })
    .await;
    drop(events);
    eventually_some("it is killed", Duration::from_secs(5), async || {
        (!caller.has_process(&idle.id, &sleeping).await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn user_bytes_of_stdin_one_stream_and_a_fraction_of_a_second() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let body = json!({
        "command": ["sh", "-c", "id -u; echo err >&2; od -An -tx1; sleep 60"],
        "user": "nobody",
        "stdin_base64": "AP8K",
        "merge_stderr": true,
        "timeout": 3.5,
    });
    let reply = caller.exec(&idle.id, &body).await;
    let words: Vec<&str> = reply["stdout"]
        .as_str()
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(words, ["65534", "err", "00", "ff", "0a"]);
    assert_eq!(
        (&reply["stderr"], &reply["exit_code"]),
        (&json!(""), &json!(124))
    );
    let took = reply["duration_ms"].as_u64().unwrap();
    assert!((3500..7000).contains(&took), "{took}");
}

const BOUNDARY: &str = "a-boundary-that-no-part-has";

/// A form with these parts: name and content.
fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content) in parts {
        let head =
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

async fn send_form(body: Vec<u8>, accept: &str) -> Answer {
    let idle = idle().await;
    let path = format!("/environments/{}/exec", idle.id);
    let media_type = format!("multipart/form-data; boundary={BOUNDARY}");
    let request = idle.user.caller.request(Method::POST, &path);
    let request = request
        .header("content-type", media_type)
        .header("accept", accept);
    send(request.body(body)).await
}

#[tokio::test]
async fn stdin_of_a_form_has_any_size_and_is_read_as_the_command_reads_it() {
    let command = br#"{"command": ["sh", "-c", "sleep 1; wc -c"], "timeout": 60}"#;
    let long = vec![0xff; 16 * 1024 * 1024];
    let answer = send_form(form(&[("exec", &command[..]), ("stdin", &long[..])]), "*/*").await;
    let reply = answer.expect_status(200);
    assert_eq!(
        reply["stdout"].as_str().unwrap().trim(),
        long.len().to_string()
    );
    // A command need not read it.
    let unread = br#"{"command": ["sh", "-c", "exit 3"]}"#;
    let some = vec![b'x'; 64 * 1024];
    let answer = send_form(form(&[("exec", &unread[..]), ("stdin", &some[..])]), "*/*").await;
    assert_eq!(answer.expect_status(200)["exit_code"], 3);
}

#[tokio::test]
async fn form_with_other_parts_returns_400() {
    let exec = &br#"{"command": ["cat"]}"#[..];
    let with_stdin = &br#"{"command": ["a"], "stdin": ""}"#[..];
    type Parts<'a> = &'a [(&'a str, &'a [u8])];
    let forms: [(Parts, &str); 6] = [
        (&[], "validation_failed"),
        (&[("stdin", b"a"), ("exec", exec)], "validation_failed"),
        (&[("exec", exec), ("file", b"a")], "validation_failed"),
        (
            &[("exec", exec), ("stdin", b"a"), ("stdin", b"b")],
            "validation_failed",
        ),
        (&[("exec", b"{")], "bad_request"),
        (&[("exec", with_stdin)], "validation_failed"),
    ];
    for (parts, code) in forms {
        let answer = send_form(form(parts), "*/*").await;
        answer.expect_error(400, code);
    }
    let body = form(&[("exec", exec), ("stdin", b"a")]);
    let answer = send_form(body, "text/event-stream").await;
    answer.expect_error(400, "validation_failed");
    let cut = form(&[("exec", exec), ("stdin", b"a")]);
    let cut = cut[..cut.len() - 20].to_vec();
    send_form(cut, "*/*").await.expect_error(400, "bad_request");
}
