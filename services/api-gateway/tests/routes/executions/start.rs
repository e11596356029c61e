//! The start of an execution: its fields, their rules, and idempotency keys.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{mark, request};
use crate::support::boxes::{idle, small};
use crate::support::caller::{new_user, send};
use crate::support::socket::Socket;

fn time(record: &Value, field: &str) -> DateTime<Utc> {
    record[field].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn every_field_reaches_the_command_and_the_record() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let body = json!({
        "command": ["sh", "-c", "id -u; pwd; echo $GREETING; cat; echo err >&2; exit 3"],
        "user": "nobody",
        "working_dir": "/tmp",
        "env": {"GREETING": "good day"},
        "stdin": {"text": "from outside\n"},
        "timeout": 60.5,
        "name": "all fields",
        "labels": {"step": "one"},
        "on_full": "block",
        "keep_bytes": 4096,
    });
    let path = format!("/environments/{}/executions", idle.id);
    let waiting = caller.request(Method::POST, &format!("{path}?wait=60"));
    let answer = send(waiting.json(&body)).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let record = answer.json();
    let path = format!("{path}/{}", record["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), format!("/api/v1{path}"));
    let output = "65534\n/tmp\ngood day\nfrom outside\n";
    for (field, value) in [
        ("name", &body["name"]),
        ("command", &body["command"]),
        ("user", &body["user"]),
        ("working_dir", &body["working_dir"]),
        ("timeout", &body["timeout"]),
        ("labels", &body["labels"]),
        ("status", &json!("exited")),
        ("exit_code", &json!(3)),
        ("stdout_bytes", &json!(output.len())),
        ("stderr_bytes", &json!(4)),
        ("tty", &Value::Null),
    ] {
        assert_eq!(&record[field], value, "{field}: {record}");
    }
    assert!(record["pid"].as_u64().is_some_and(|pid| pid > 1));
    assert!(record["duration_ms"].is_u64(), "{record}");
    for absent in ["signal", "status_reason"] {
        assert!(record.get(absent).is_none(), "{record}");
    }
    assert!(time(&record, "created_at") <= time(&record, "started_at"));
    assert!(time(&record, "started_at") <= time(&record, "ended_at"));
    for gateway in 0..caller.gateways() {
        let again = caller.get_on(gateway, &path).await.expect_status(200);
        assert_eq!(again, record);
        for (stream, expected) in [("stdout", output), ("stderr", "err\n")] {
            let raw = format!("{path}/output?stream={stream}");
            assert_eq!(caller.get_on(gateway, &raw).await.text, expected);
        }
    }
}

#[tokio::test]
async fn command_alone_has_the_documented_defaults() {
    let idle = idle().await;
    let execution = idle.user.caller.start_sh(&idle.id, "cat").await;
    let record = execution.ended().await;
    assert_eq!(record["exit_code"], 0, "stdin is empty: {record}");
    for absent in ["name", "timeout"] {
        assert!(record.get(absent).is_none(), "{record}");
    }
    assert_eq!(
        (&record["user"], &record["labels"]),
        (&json!("root"), &json!({}))
    );
    assert!(record["working_dir"].as_str().unwrap().starts_with('/'));
}

#[tokio::test]
async fn wait_delays_the_answer_until_the_end_or_its_time() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let path = format!("/environments/{}/executions", idle.id);
    let body = json!({"command": ["sleep", "30"]});
    let begun = Instant::now();
    let answer = caller.post(&format!("{path}?wait=1"), &body).await;
    let record = answer.expect_status(201);
    let one = format!("{path}/{}", record["id"].as_str().unwrap());
    assert_eq!(record["status"], "running", "{record}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let begun = Instant::now();
    let at_once = caller.get(&one).await.expect_status(200);
    assert_eq!(at_once["status"], "running", "{at_once}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    // The end of the execution ends the wait.
    let waiting = format!("{one}?wait=25");
    let (answer, deleted) = tokio::join!(caller.get(&waiting), caller.delete(&one));
    deleted.expect_status(204);
    assert_eq!(answer.expect_status(200)["status"], "signalled");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    for path in [format!("{one}?wait=61"), format!("{one}?wait=x")] {
        let message = caller
            .get(&path)
            .await
            .expect_error(400, "validation_failed");
        assert!(message.starts_with("wait"), "{message}");
    }
    let refused = caller.post(&format!("{path}?wait=61"), &body).await;
    refused.expect_error(400, "validation_failed");
}

#[tokio::test]
async fn repeated_idempotency_key_answers_the_same_execution() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let path = format!("/environments/{}/executions", idle.id);
    let mark = mark();
    let send_with = |key: &str, body: &str| {
        let request = caller.request(Method::POST, &path);
        let request = request.header("idempotency-key", key);
        let request = request.header("content-type", "application/json");
        send(request.body(body.to_owned()))
    };
    let text = format!(r#"{{"command": ["sleep", "2"], "labels": {{"mark": "{mark}"}}}}"#);
    // The same fields in another order.
    let same = format!(r#"{{"labels":{{"mark":"{mark}"}},"command":["sleep","2"]}}"#);
    let bodies = [text.as_str(), same.as_str()];
    let requests = (0..8).map(|n| send_with(&mark, bodies[n % 2]));
    let mut ids: Vec<Value> = Vec::new();
    for answer in join_all(requests).await {
        let record = answer.expect_status(201);
        assert_eq!(record["labels"], json!({"mark": mark}));
        ids.push(record["id"].clone());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let list = caller.get(&format!("{path}?label=mark%3D{mark}")).await;
    assert_eq!(list.expect_status(200)["total"], 1);
    let other = format!(r#"{{"command": ["sleep", "3"], "labels": {{"mark": "{mark}"}}}}"#);
    send_with(&mark, &other)
        .await
        .expect_error(409, "idempotency_conflict");
    // An execution that has ended keeps its key.
    let one = format!("{path}/{}?wait=60", ids[0].as_str().unwrap());
    let ended = caller.get(&one).await.expect_status(200);
    assert_eq!(send_with(&mark, &text).await.expect_status(201), ended);
    send_with("", &text)
        .await
        .expect_error(400, "validation_failed");
    // An API key acts for its user.
    let (_, by_key) = idle.user.key(json!({})).await;
    let request = by_key.request(Method::POST, &path);
    let request = request.header("idempotency-key", &mark);
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(send(request.json(&body)).await.expect_status(201), ended);
}

#[tokio::test]
async fn invalid_request_returns_400_naming_the_field() {
    for (field, value) in [
        ("command", json!([])),
        ("command", json!("ls")),
        ("command[0]", json!([""])),
        ("command[1]", json!(["a", "b\u{0}"])),
        ("user", json!("")),
        ("working_dir", json!("tmp")),
        ("env.A=B", json!({"A=B": ""})),
        ("stdin", json!("closed")),
        ("stdin", json!({"text": "a", "base64": ""})),
        ("stdin", json!({"base64": "?"})),
        ("tty", json!({"cols": 0, "rows": 24})),
        ("tty", json!({"cols": 80})),
        ("merge_stderr", json!("yes")),
        ("timeout", json!(0)),
        ("timeout", json!(-1.5)),
        ("name", json!("")),
        ("labels", json!({"-": ""})),
        ("labels", json!({"agentbox.io/a": "b"})),
        ("on_full", json!("wait")),
        ("keep_bytes", json!(0)),
        ("keep_bytes", json!(16 * 1024 * 1024 + 1)),
        ("shell", json!(true)),
    ] {
        let mut body = json!({"command": ["true"]});
        let name = field.split(['.', '[']).next().unwrap();
        body[name] = value;
        let message = request(&body).await.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{body}: {message}");
    }
    request(&json!({}))
        .await
        .expect_error(400, "validation_failed");
}

#[tokio::test]
async fn directory_that_cannot_be_entered_returns_400_and_starts_nothing() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let mark = mark();
    for directory in ["/no/such/directory", "/etc/passwd"] {
        let mut body = json!({"command": ["true"], "working_dir": directory});
        let exec = format!("/environments/{}/exec", idle.id);
        let message = caller
            .post(&exec, &body)
            .await
            .expect_error(400, "working_dir_not_found");
        assert!(message.contains(directory), "{message}");
        body["labels"] = json!({"mark": mark});
        request(&body)
            .await
            .expect_error(400, "working_dir_not_found");
        let query = format!("tty=false&command=true&working_dir={directory}");
        let refused = Socket::open_on(caller, 0, &idle.id, &query).await;
        let (status, body) = refused.err().unwrap();
        assert_eq!(
            (status, &body["error"]),
            (400, &json!("working_dir_not_found"))
        );
    }
    let list = format!("/environments/{}/executions?label=mark%3D{mark}", idle.id);
    assert_eq!(caller.get(&list).await.expect_status(200)["total"], 0);
}

#[tokio::test]
async fn another_user_is_possible_only_as_root() {
    let idle = idle().await;
    let exec = |id: &str| format!("/environments/{id}/exec");
    for unknown in ["no-such-user", "root:no-such-group"] {
        let body = json!({"command": ["true"], "user": unknown});
        request(&body).await.expect_error(400, "user_not_found");
        let answer = idle.user.caller.post(&exec(&idle.id), &body).await;
        answer.expect_error(400, "user_not_found");
    }
    let body = json!({"command": ["id"], "user": "4242:4243"});
    let reply = idle.user.caller.exec(&idle.id, &body).await;
    let ids = reply["stdout"].as_str().unwrap();
    assert!(ids.starts_with("uid=4242 gid=4243"), "{ids}");

    let user = new_user().await;
    let mut restricted = small();
    restricted["isolation"] = json!({
        "security_context": {"run_as_user": 1000, "run_as_non_root": true}
    });
    let id = user.caller.create_running(&restricted).await;
    let path = format!("/environments/{id}/executions");
    for other in ["root", "0", "nobody"] {
        let body = json!({"command": ["true"], "user": other});
        let answer = user.caller.post(&path, &body).await;
        let message = answer.expect_error(400, "user_not_allowed");
        assert!(message.starts_with("user"), "{message}");
        let answer = user.caller.post(&exec(&id), &body).await;
        answer.expect_error(400, "user_not_allowed");
    }
    let own = json!({"command": ["id", "-u"], "user": "1000"});
    let execution = user.caller.start(&id, &own).await;
    execution.ended().await;
    assert_eq!(execution.stdout().await, "1000\n");
}

#[tokio::test]
async fn command_and_stdin_may_have_four_mebibytes_together() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let mut command = vec!["sh".to_owned(), "-c".to_owned(), "echo $#".to_owned()];
    command.extend((0..15).map(|_| "x".repeat(120_000)));
    let body = json!({"command": command});
    let reply = caller.exec(&idle.id, &body).await;
    // The first is `$0`.
    assert_eq!(reply["stdout"], "14\n");
    let execution = caller.start(&idle.id, &body).await;
    execution.ended().await;
    assert_eq!(execution.stdout().await, "14\n");

    let text = "x".repeat(4_000_000);
    let body = json!({"command": ["wc", "-c"], "stdin": {"text": text}});
    let execution = caller.start(&idle.id, &body).await;
    execution.ended().await;
    assert_eq!(execution.stdout().await.trim(), "4000000");
    let body = json!({"command": ["wc", "-c"], "stdin": text});
    let reply = caller.exec(&idle.id, &body).await;
    assert_eq!(reply["stdout"].as_str().unwrap().trim(), "4000000");

    command.extend((0..3).map(|_| "x".repeat(120_000)));
    let body = json!({"command": command});
    let message = request(&body).await.expect_error(400, "validation_failed");
    assert!(message.starts_with("command"), "{message}");
}
