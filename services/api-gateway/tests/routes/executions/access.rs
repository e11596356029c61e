//! Who may use an execution: keys, tickets, and the entries in the audit trail.

use reqwest::Method;
use serde_json::{Value, json};

use super::mark;
use crate::support::answer::Answer;
use crate::support::boxes::{idle, small};
use crate::support::caller::{Caller, new_user, send};
use crate::support::eventually;
use crate::support::socket::{Socket, handshake};
use crate::support::sse::Events;
use crate::support::system::shared;

/// The answers of the routes of executions that read, and of those that write.
async fn call_every_route(caller: &Caller, id: &str, execution: &str) -> [Vec<Answer>; 2] {
    let path = format!("/environments/{id}/executions");
    let one = format!("{path}/{execution}");
    let mut answers = [Vec::new(), Vec::new()];
    for (kind, method, path, body) in [
        (0, Method::GET, path.clone(), None),
        (0, Method::GET, one.clone(), None),
        (0, Method::GET, format!("{one}/output?stream=stdout"), None),
        (1, Method::POST, path, Some(json!({"command": ["true"]}))),
        (1, Method::POST, format!("{one}/stdin"), Some(json!("x"))),
        (
            1,
            Method::POST,
            format!("{one}/signal"),
            Some(json!({"signal": "WINCH"})),
        ),
        (
            1,
            Method::POST,
            format!("{one}/resize"),
            Some(json!({"cols": 80, "rows": 24})),
        ),
        (1, Method::GET, format!("{one}/attach"), None),
        (1, Method::DELETE, one, None),
    ] {
        let mut request = caller.request(method, &path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answers[kind].push(send(request).await);
    }
    answers
}

#[tokio::test]
async fn key_reads_with_read_and_changes_with_write() {
    let idle = idle().await;
    let execution = idle
        .user
        .caller
        .start_sh(&idle.id, "echo hi; exec sleep 60")
        .await;
    let read = idle.user.key_for(&idle.id, "read").await;
    let [reads, writes] = call_every_route(&read, &idle.id, &execution.id).await;
    for answer in reads {
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    for answer in writes {
        answer.expect_error(403, "forbidden");
    }
    assert_eq!(execution.get().await["status"], "running");
    let write = idle.user.key_for(&idle.id, "write").await;
    let [reads, writes] = call_every_route(&write, &idle.id, &execution.id).await;
    let statuses: Vec<u16> = reads
        .iter()
        .chain(&writes)
        .map(|answer| answer.status)
        .collect();
    // Its stdin is not open, it has no terminal, and the attach is no handshake.
    assert_eq!(statuses, [200, 200, 200, 201, 409, 204, 409, 400, 204]);
    assert_eq!(execution.ended().await["status"], "signalled");
}

#[tokio::test]
async fn foreign_execution_is_answered_like_a_missing_one() {
    let idle = idle().await;
    let execution = idle.user.caller.start_sh(&idle.id, "exec sleep 60").await;
    let stranger = new_user().await;
    let own = stranger.caller.create_running(&small()).await;
    let other_key = stranger.key_for(&own, "write").await;
    let missing = "exec-0000000000000000";
    for caller in [&stranger.caller, &other_key] {
        // In a foreign environment, which is not found either.
        let foreign = call_every_route(caller, &idle.id, &execution.id).await;
        let absent = call_every_route(caller, "env-0000000000000000", missing).await;
        for (foreign, absent) in foreign.iter().flatten().zip(absent.iter().flatten()) {
            foreign.expect_error(404, "not_found");
            assert_eq!(foreign.text, absent.text);
        }
        // In an own one.
        for id in [execution.id.as_str(), missing] {
            let path = format!("/environments/{own}/executions/{id}");
            for path in [
                path.clone(),
                format!("{path}/output"),
                format!("{path}?wait=5"),
            ] {
                let message = caller.get(&path).await.expect_error(404, "not_found");
                assert_eq!(message, "execution not found");
            }
            caller.delete(&path).await.expect_error(404, "not_found");
        }
    }
    assert_eq!(execution.get().await["status"], "running");
    let deleted = execution.caller.delete(&execution.path).await;
    deleted.expect_status(204);
}

async fn ticket(caller: &Caller, id: &str, action: &str, execution: &str) -> Answer {
    let body = json!({"environment_id": id, "action": action, "execution_id": execution});
    caller.post("/auth/tickets", &body).await
}

#[tokio::test]
async fn ticket_opens_the_stream_of_its_execution_once() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let browser = Caller::without_token_on(shared().await);
    let execution = caller.start_sh(&idle.id, "echo hi; exec sleep 60").await;
    let other = caller.start_sh(&idle.id, "exec sleep 60").await;
    let fresh = async |action: &str| -> String {
        let reply = ticket(caller, &idle.id, action, &execution.id).await;
        let reply = reply.expect_status(201);
        reply["ticket"].as_str().unwrap().to_owned()
    };
    let is_refused = |status: u16| matches!(status, 401 | 403);

    let output = format!("follow=true&ticket={}", fresh("output").await);
    let mut events = Events::open(&browser, &execution.output(&output)).await;
    assert_eq!(events.next().await.unwrap().json()["data"], "hi\n");
    let again = browser.get(&execution.output(&output)).await;
    again.expect_error(401, "unauthorized");
    let query = format!("ticket={}", fresh("execution_attach").await);
    let socket = Socket::connect(handshake(&browser, 1, execution.socket(), &query)).await;
    assert_eq!(socket.unwrap().ready().await, execution.id);
    let again = Socket::connect(handshake(&browser, 0, execution.socket(), &query)).await;
    assert_eq!(again.err().unwrap().0, 401);

    // Another execution, another action, another environment.
    let elsewhere = format!("stream=stdout&ticket={}", fresh("output").await);
    let refused = browser.get(&other.output(&elsewhere)).await;
    assert!(is_refused(refused.status), "{refused:?}");
    for (path, action) in [
        (execution.socket().to_owned(), "output"),
        (other.socket().to_owned(), "execution_attach"),
        (idle.id.clone(), "execution_attach"),
    ] {
        let query = format!("ticket={}", fresh(action).await);
        let refused = Socket::connect(handshake(&browser, 0, &path, &query)).await;
        let (status, body) = refused.err().unwrap();
        assert!(is_refused(status), "{path} {action}: {status} {body}");
    }
    let path = format!("{}?ticket={}", execution.path, fresh("output").await);
    browser.get(&path).await.expect_error(401, "unauthorized");
    for one in [execution, other] {
        one.caller.delete(&one.path).await.expect_status(204);
    }
}

#[tokio::test]
async fn ticket_needs_the_execution_and_the_permission_of_its_action() {
    let idle = idle().await;
    let id = "exec-0123456789abcdef";
    let reader = idle.user.key_for(&idle.id, "read").await;
    let issued = ticket(&reader, &idle.id, "output", id).await;
    issued.expect_status(201);
    ticket(&reader, &idle.id, "execution_attach", id)
        .await
        .expect_error(403, "forbidden");
    let stranger = new_user().await;
    ticket(&stranger.caller, &idle.id, "output", id)
        .await
        .expect_error(404, "not_found");
    let owner = &idle.user.caller;
    for action in ["logs", "attach"] {
        let answer = ticket(owner, &idle.id, action, id).await;
        let message = answer.expect_error(400, "validation_failed");
        assert!(message.starts_with("execution_id"), "{message}");
    }
    for action in ["output", "execution_attach"] {
        let body = json!({"environment_id": idle.id, "action": action});
        let answer = owner.post("/auth/tickets", &body).await;
        let message = answer.expect_error(400, "validation_failed");
        assert!(message.starts_with("execution_id"), "{message}");
    }
}

#[tokio::test]
async fn each_access_has_an_entry_in_the_audit_trail() {
    let idle = idle().await;
    let (key, caller) = idle.user.key(json!({})).await;
    let mark = mark();
    let body = json!({"command": ["cat", mark], "stdin": "open"});
    let execution = caller.start(&idle.id, &body).await;
    caller.get(&execution.output("")).await;
    let mut socket = Socket::open(&caller, execution.socket(), "").await;
    socket.ready().await;
    let signal = json!({"signal": "TERM"});
    // `cat` may have ended before.
    execution.post("signal", &signal).await;
    caller.delete(&execution.path).await.expect_status(204);
    for (action, count) in [
        ("start-execution", 1),
        ("read-output", 1),
        ("attach-execution", 1),
        ("control-execution", 2),
    ] {
        let path = format!("/audit?action={action}&target={}&limit=1000", idle.id);
        let entries: Vec<Value> = eventually(action, async || {
            let list = idle.user.caller.get(&path).await.expect_status(200);
            let entries = list["entries"].as_array().unwrap().iter();
            let by_key: Vec<Value> = entries.filter(|one| one["key"] == key).cloned().collect();
            (by_key.len() >= count).then_some(by_key)
        })
        .await;
        assert_eq!(entries.len(), count, "{action}");
        for entry in entries {
            assert_eq!(entry["outcome"], "accepted", "{entry}");
            assert_eq!(entry["user"], idle.user.id, "{entry}");
            assert_eq!(entry["arguments"], Value::Null, "{entry}");
            assert!(!entry.to_string().contains(&mark), "{entry}");
        }
    }
}
