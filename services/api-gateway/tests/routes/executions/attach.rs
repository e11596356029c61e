//! `GET …/attach` of executions: several clients, and the guide's terminals as executions.

use std::time::Duration;

use futures::SinkExt as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::boxes::idle;
use crate::support::eventually_some;
use crate::support::executions::{Execution, is_active};
use crate::support::socket::{Frame, Socket};

async fn attach(execution: &Execution, gateway: usize, query: &str) -> (Socket, Value) {
    let socket = Socket::open_on(&execution.caller, gateway, execution.socket(), query).await;
    let mut socket = socket.unwrap_or_else(|(status, body)| panic!("{status} {body}"));
    let ready = socket.message().await;
    assert_eq!(ready["type"], "ready", "{ready}");
    assert_eq!(ready["session_id"], execution.id.as_str(), "{ready}");
    (socket, ready)
}

/// Reads messages, output aside, until one of this type.
async fn read_type(socket: &mut Socket, kind: &str) {
    loop {
        let message = socket.message().await;
        if message["type"] == kind {
            return;
        }
        assert_eq!(message["type"], "stdout", "{message}");
    }
}

async fn echo() -> Execution {
    let idle = idle().await;
    let text = "while read line; do echo got=$line; done; echo end; exit 3";
    let body = json!({"command": ["sh", "-c", text], "stdin": "open"});
    idle.user.caller.start(&idle.id, &body).await
}

#[tokio::test]
async fn clients_share_the_output_and_one_holds_the_input() {
    let execution = echo().await;
    let (mut first, ready) = attach(&execution, 0, "").await;
    assert_eq!(ready["has_input"], true, "{ready}");
    assert_eq!(ready["offsets"], json!({"stdout": 0, "stderr": 0}));
    let (mut second, ready) = attach(&execution, 1, "").await;
    assert_eq!(ready["has_input"], false, "{ready}");
    second.stdin("ignored\n").await;
    first.stdin("one\n").await;
    for socket in [&mut first, &mut second] {
        assert_eq!(socket.read_until("one\n").await, "got=one\n");
    }
    second.send(json!({"type": "take_input"})).await;
    read_type(&mut second, "input_granted").await;
    read_type(&mut first, "input_taken").await;
    first.stdin("ignored\n").await;
    second.stdin("two\n").await;
    for socket in [&mut first, &mut second] {
        assert_eq!(socket.read_until("two\n").await, "got=two\n");
    }
    // All clients may send signals, and bad messages end nothing.
    first
        .send(json!({"type": "signal", "signal": "SIGFOO"}))
        .await;
    assert_eq!(first.message().await["type"], "error");
    second.send(json!({"type": "eof"})).await;
    for socket in [&mut first, &mut second] {
        let output = socket.read_to_end().await;
        assert_eq!(output.stdout, "end\n");
        assert_eq!(output.exit, Some(json!({"type": "exit", "exit_code": 3})));
        assert_eq!(output.close.0, 1000);
    }
    // One that has ended shows its output and its exit.
    let (mut late, ready) = attach(&execution, 0, "from=8-0").await;
    assert_eq!(ready["offsets"], json!({"stdout": 8, "stderr": 0}));
    let output = late.read_to_end().await;
    assert_eq!(output.stdout, "got=two\nend\n");
    assert_eq!(output.exit.unwrap()["exit_code"], 3);
}

#[tokio::test]
async fn socket_that_ends_ends_no_execution() {
    let execution = echo().await;
    let mut at = 0;
    for gateway in [0, 1, 0] {
        let from = format!("from={at}-0");
        let (mut socket, ready) = attach(&execution, gateway, &from).await;
        assert_eq!(ready["offsets"], json!({"stdout": at, "stderr": 0}));
        if ready["has_input"] == false {
            // The connection that was lost is not noticed yet.
            socket.send(json!({"type": "take_input"})).await;
        }
        let line = format!("line {gateway}\n");
        socket.stdin(&line).await;
        let mut seen = String::new();
        while !seen.ends_with('\n') {
            let message = socket.message().await;
            seen.push_str(message["data"].as_str().unwrap_or(""));
        }
        assert_eq!(seen, format!("got={line}"));
        at += seen.len();
        // By a close frame, and without one.
        if gateway == 1 {
            socket.socket.close(None).await.unwrap();
        }
        drop(socket);
        let path = format!("{}?wait=1", execution.path);
        let record = execution.caller.get(&path).await.expect_status(200);
        assert!(is_active(&record), "{record}");
    }
    let deleted = execution.caller.delete(&execution.path).await;
    deleted.expect_status(204);
}

#[tokio::test]
async fn next_client_of_a_terminal_gets_the_last_screenful_and_a_resize() {
    let idle = idle().await;
    let text = "trap 'stty size' WINCH; seq 1000000 1020000; echo up; while :; do sleep 0.05; done";
    let body = json!({"command": ["sh", "-c", text], "tty": {"cols": 80, "rows": 24}});
    let execution = idle.user.caller.start(&idle.id, &body).await;
    let (mut first, ready) = attach(&execution, 0, "").await;
    assert_eq!(ready["offsets"]["stdout"], 0, "{ready}");
    first.read_until("up\r\n").await;
    drop(first);
    let (mut next, ready) = attach(&execution, 1, "").await;
    let total = execution.get().await["stdout_bytes"].as_u64().unwrap();
    let screen = total - ready["offsets"]["stdout"].as_u64().unwrap();
    assert!(screen > 1024 && screen <= 65 * 1024, "{screen} of {total}");
    let seen = next.read_until("24 80").await;
    assert!(
        seen.starts_with("10"),
        "it begins with a line: {}",
        &seen[..20]
    );
    assert!(seen.contains("1020000\r\nup\r\n"), "{}", seen.len());
    next.send(json!({"type": "take_input"})).await;
    let size = json!({"cols": 100, "rows": 30});
    next.send(json!({"type": "resize", "cols": 100, "rows": 30}))
        .await;
    next.send(json!({"type": "signal", "signal": "WINCH"}))
        .await;
    loop {
        let message = next.message().await;
        if message["data"]
            .as_str()
            .is_some_and(|text| text.contains("30 100"))
        {
            break;
        }
    }
    assert_eq!(execution.get().await["tty"], size);
    next.send(json!({"type": "signal", "signal": "KILL"})).await;
    assert_eq!(execution.ended().await["signal"], 9);
}

#[tokio::test]
async fn binary_frames_name_their_stream_and_carry_stdin() {
    let idle = idle().await;
    let text = "cat; cat /dev/null; printf 'e\\377' >&2";
    let body = json!({"command": ["sh", "-c", text], "stdin": "open"});
    let execution = idle.user.caller.start(&idle.id, &body).await;
    let (mut socket, _) = attach(&execution, 0, "binary=true").await;
    let sent = b"\xff\x00o".to_vec();
    socket
        .socket
        .send(Message::Binary(sent.into()))
        .await
        .unwrap();
    socket.send(json!({"type": "eof"})).await;
    let mut seen = Vec::new();
    while let Frame::Binary(frame) = socket.next().await {
        seen.extend_from_slice(&frame);
    }
    assert_eq!(seen, b"\x01\xff\x00o\x02e\xff");
}

#[tokio::test]
async fn refused_handshake_has_status_and_error() {
    let execution = echo().await;
    let caller = &execution.caller;
    let unknown = execution
        .socket()
        .replace(&execution.id, "exec-0000000000000000");
    for (socket, query, status, error) in [
        (execution.socket(), "from=1", 400, "validation_failed"),
        (execution.socket(), "from=9999-0", 400, "validation_failed"),
        (execution.socket(), "tty=true", 400, "validation_failed"),
        (unknown.as_str(), "", 404, "not_found"),
    ] {
        let refused = Socket::open_on(caller, 0, socket, query).await;
        let (found, body) = refused.err().unwrap();
        assert_eq!(
            (found, &body["error"]),
            (status, &json!(error)),
            "{query}: {body}"
        );
    }
    let environment = execution.socket().split('/').next().unwrap();
    let query = "session_id=exec-0000000000000000";
    let refused = Socket::open_on(caller, 1, environment, query).await;
    assert_eq!(refused.err().unwrap().0, 404);
    // A request without a handshake.
    caller
        .get(&format!("{}/attach", execution.path))
        .await
        .expect_error(400, "bad_request");
    caller.delete(&execution.path).await.expect_status(204);
}

#[tokio::test]
async fn terminal_of_the_guide_is_an_execution_that_its_client_ends() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let query = "tty=false&user=nobody&command=sh&command=-c&command=id%20-u%3B%20cat";
    let mut socket = Socket::open(caller, &idle.id, query).await;
    let id = socket.ready().await;
    assert_eq!(socket.read_until("\n").await, "65534\n");
    let path = format!("/environments/{}/executions/{id}", idle.id);
    let record = caller.get(&path).await.expect_status(200);
    assert_eq!(
        (&record["status"], &record["user"]),
        (&json!("running"), &json!("nobody"))
    );
    // Others may attach to it, and their end is not its end.
    let watched = format!("{}/executions/{id}", idle.id);
    let mut watching = Socket::open(caller, &watched, "").await;
    watching.ready().await;
    assert_eq!(watching.read_until("\n").await, "65534\n");
    watching.socket.close(None).await.unwrap();
    socket.stdin("still here\n").await;
    assert_eq!(socket.read_until("\n").await, "still here\n");
    socket.socket.close(None).await.unwrap();
    let record = eventually_some("it has ended", Duration::from_secs(5), async || {
        let record = caller.get(&path).await.expect_status(200);
        (!is_active(&record)).then_some(record)
    })
    .await;
    assert_eq!(record["status"], "signalled", "{record}");
    let output = caller.get(&format!("{path}/output?stream=stdout")).await;
    assert_eq!(output.text, "65534\nstill here\n");
}
