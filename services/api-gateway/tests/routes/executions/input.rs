//! The input of executions: stdin, signals and the terminal.

use std::pin::pin;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::boxes::idle;
use crate::support::executions::Execution;

async fn start(body: Value) -> Execution {
    let idle = idle().await;
    idle.user.caller.start(&idle.id, &body).await
}

#[tokio::test]
async fn stdin_takes_any_number_of_bodies_of_any_size_until_it_is_closed() {
    let execution = start(json!({"command": ["wc", "-c"], "stdin": "open"})).await;
    execution
        .stdin("close=false", "abc")
        .await
        .expect_status(204);
    let long = vec![b'x'; 8 * 1024 * 1024];
    execution
        .stdin("close=false", long)
        .await
        .expect_status(204);
    execution.stdin("close=true", "").await.expect_status(204);
    let record = execution.ended().await;
    assert_eq!(record["exit_code"], 0, "{record}");
    let expected = 3 + 8 * 1024 * 1024;
    assert_eq!(execution.stdout().await.trim(), expected.to_string());
}

#[tokio::test]
async fn body_is_streamed_at_the_pace_of_the_command() {
    let file = format!("/tmp/pace-{:016x}", rand::random::<u64>());
    let text = format!("until [ -e {file} ]; do sleep 0.1; done; head -c 4 | od -c; wc -c");
    let execution = start(json!({"command": ["sh", "-c", text], "stdin": "open"})).await;
    let long = vec![b'x'; 4 * 1024 * 1024];
    let mut sending = pin!(execution.stdin("close=true", long));
    // A fixed time, because the claim is that nothing happens.
    let early = timeout(Duration::from_millis(1500), sending.as_mut()).await;
    assert!(early.is_err(), "before the command reads: {early:?}");
    let idle = idle().await;
    let touch = format!("touch {file}");
    let (answer, touched) = tokio::join!(sending, idle.user.caller.sh(&idle.id, &touch));
    assert_eq!(touched["exit_code"], 0, "{touched}");
    answer.expect_status(204);
    assert_eq!(execution.ended().await["exit_code"], 0);
}

#[tokio::test]
async fn bytes_of_the_request_are_all_of_stdin() {
    let cat = |stdin: Value| json!({"command": ["cat"], "stdin": stdin});
    for (stdin, expected) in [
        (json!("none"), &b""[..]),
        (json!({"text": "some text\n"}), b"some text\n"),
        (json!({"text": ""}), b""),
        (json!({"base64": "AP8K"}), b"\0\xff\n"),
    ] {
        let execution = start(cat(stdin.clone())).await;
        assert_eq!(execution.ended().await["exit_code"], 0, "{stdin}");
        assert_eq!(execution.bytes("stdout").await, expected, "{stdin}");
        execution
            .stdin("close=true", "late")
            .await
            .expect_error(409, "conflict");
    }
}

#[tokio::test]
async fn stdin_that_is_not_open_is_a_conflict() {
    let closed = start(json!({"command": ["sleep", "60"]})).await;
    let message = closed
        .stdin("close=false", "x")
        .await
        .expect_error(409, "conflict");
    assert!(message.contains("stdin"), "{message}");
    let text = "cat > /dev/null; exec sleep 60";
    let open = start(json!({"command": ["sh", "-c", text], "stdin": "open"})).await;
    open.stdin("close=true", "x").await.expect_status(204);
    open.stdin("close=false", "x")
        .await
        .expect_error(409, "conflict");
    open.stdin("close=maybe", "x")
        .await
        .expect_error(400, "validation_failed");
    for execution in [closed, open] {
        let answer = execution.caller.delete(&execution.path).await;
        answer.expect_status(204);
        let late = execution.stdin("close=false", "x").await;
        let message = late.expect_error(409, "conflict");
        assert!(message.contains("ended"), "{message}");
    }
}

#[tokio::test]
async fn signal_reaches_the_process_group_by_its_name_only() {
    // The shell writes to stderr that its child was signalled too.
    let text = "exec 2>/dev/null; trap 'exit 7' TERM; trap 'echo usr1' USR1; echo up; \
                while :; do sleep 0.05; done";
    let execution = start(json!({"command": ["sh", "-c", text]})).await;
    let mut events = execution.follow().await;
    assert_eq!(events.next().await.unwrap().json()["data"], "up\n");
    for (signal, field) in [
        (json!("SIGFOO"), "signal"),
        (json!("9"), "signal"),
        (json!(""), "signal"),
        (json!(9), "signal"),
    ] {
        let answer = execution.post("signal", &json!({"signal": signal})).await;
        let message = answer.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{signal}: {message}");
    }
    let usr1 = json!({"signal": "usr1"});
    execution.post("signal", &usr1).await.expect_status(204);
    assert_eq!(events.next().await.unwrap().json()["data"], "usr1\n");
    let term = json!({"signal": "SIGTERM"});
    execution.post("signal", &term).await.expect_status(204);
    assert_eq!(execution.ended().await["exit_code"], 7);
    let late = execution.post("signal", &term).await;
    late.expect_error(409, "conflict");
    let sleeping = start(json!({"command": ["sleep", "60"]})).await;
    let int = json!({"signal": "INT"});
    sleeping.post("signal", &int).await.expect_status(204);
    let record = sleeping.ended().await;
    assert_eq!(
        (&record["status"], &record["signal"]),
        (&json!("signalled"), &json!(2))
    );
}

#[tokio::test]
async fn terminal_has_the_requested_size_and_resizes() {
    let body = json!({"command": ["sh"], "tty": {"cols": 132, "rows": 50}});
    let execution = start(body).await;
    assert_eq!(execution.record["tty"], json!({"cols": 132, "rows": 50}));
    let size = json!({"cols": 100, "rows": 30});
    let ask = "tty; stty size; echo error >&2; echo mar''k\n";
    execution.stdin("close=false", ask).await.expect_status(204);
    let mut events = execution.follow().await;
    let mut seen = String::new();
    while !seen.contains("mark") {
        let data = events.next().await.unwrap().json();
        assert_eq!(data["stream"], "stdout", "{data}");
        seen.push_str(data["data"].as_str().unwrap());
    }
    assert!(
        seen.contains("/dev/pts/") && seen.contains("50 132"),
        "{seen}"
    );
    assert!(seen.contains("error"), "{seen}");
    execution.post("resize", &size).await.expect_status(204);
    assert_eq!(execution.get().await["tty"], size);
    execution
        .stdin("close=false", "stty size; exit 5\n")
        .await
        .expect_status(204);
    assert_eq!(execution.ended().await["exit_code"], 5);
    assert!(execution.stdout().await.contains("30 100"));
    execution
        .post("resize", &size)
        .await
        .expect_error(409, "conflict");

    let plain = start(json!({"command": ["sleep", "60"]})).await;
    assert_eq!(plain.record["tty"], Value::Null);
    let answer = plain.post("resize", &size).await;
    let message = answer.expect_error(409, "conflict");
    assert!(message.contains("terminal"), "{message}");
    for (size, field) in [
        (json!({"cols": 0, "rows": 30}), "cols"),
        (json!({"cols": 80, "rows": 4097}), "rows"),
        (json!({"cols": 80}), "rows"),
    ] {
        let answer = plain.post("resize", &size).await;
        let message = answer.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{size}: {message}");
    }
    let answer = plain.caller.delete(&plain.path).await;
    answer.expect_status(204);
}

#[tokio::test]
async fn merged_stderr_keeps_the_order_of_both() {
    let text = "echo one; echo two >&2; echo three";
    let body = json!({"command": ["sh", "-c", text], "merge_stderr": true});
    let execution = start(body).await;
    let record = execution.ended().await;
    assert_eq!(record["stderr_bytes"], 0, "{record}");
    assert_eq!(execution.stdout().await, "one\ntwo\nthree\n");
    assert_eq!(execution.bytes("stderr").await, b"");
}
