//! Executions of environments that end: what stays, and how the others are lost.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::boxes::{kill_box_running, script, small};
use crate::support::caller::{Caller, new_user};
use crate::support::eventually;
use crate::support::executions::{Execution, Received};
use crate::support::socket::Socket;

/// How soon a follower must learn that its execution was lost.
const END_DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn outcomes_and_kept_output_of_an_ended_environment_stay() {
    let user = new_user().await;
    let caller = &user.caller;
    let id = caller.create_running(&small()).await;
    let exited = json!({
        "command": ["sh", "-c", "echo out; echo err >&2; exit 3"],
        "name": "build",
        "labels": {"step": "build"}
    });
    let exited = caller.start(&id, &exited).await;
    let exited_record = exited.ended().await;
    let killed = caller.start_sh(&id, "kill -9 $$").await;
    let killed_record = killed.ended().await;
    let text = "echo partial; exec sleep 600";
    let body = json!({"command": ["sh", "-c", text], "stdin": "open"});
    let running = caller.start(&id, &body).await;
    let mut following = running.follow().await;
    let mut events = following.take(1).await;
    let path = format!("/environments/{id}");
    caller.delete(&path).await.expect_status(204);
    let rest = timeout(END_DEADLINE, following.read_to_end()).await;
    events.extend(rest.expect("the follower ends in time"));
    caller.wait_until_ended(&id).await;

    let received = Received::of(events);
    assert_eq!(received.stdout, "partial\n");
    let lost = running.get().await;
    assert_eq!(received.end["status"], "lost", "{received:?}");
    assert_eq!(received.end["status_reason"], "DELETED", "{received:?}");
    for (field, value) in [
        ("status", json!("lost")),
        ("status_reason", json!("DELETED")),
        ("exit_code", Value::Null),
        ("signal", Value::Null),
        ("created_at", running.record["created_at"].clone()),
        ("command", running.record["command"].clone()),
        ("stdout_bytes", json!(8)),
    ] {
        assert_eq!(lost[field], value, "{field}: {lost}");
    }
    let at = |field: &str| -> DateTime<Utc> { lost[field].as_str().unwrap().parse().unwrap() };
    assert!(at("started_at") <= at("ended_at"), "{lost}");
    for gateway in 0..caller.gateways() {
        let list = format!("{path}/executions");
        let list = caller.get_on(gateway, &list).await.expect_status(200);
        let expected = json!([lost, killed_record, exited_record]);
        assert_eq!(
            (&list["executions"], &list["total"]),
            (&expected, &json!(3))
        );
        let labelled = format!("{path}/executions?label=step%3Dbuild&status=exited");
        let labelled = caller.get_on(gateway, &labelled).await.expect_status(200);
        assert_eq!(labelled["executions"], json!([exited_record]));
        let waited = format!("{}?wait=30", exited.path);
        let waited = caller.get_on(gateway, &waited).await.expect_status(200);
        assert_eq!(waited, exited_record);
    }
    assert_eq!(exited.stdout().await, "out\n");
    assert_eq!(exited.bytes("stderr").await, b"err\n");
    assert_eq!(running.stdout().await, "partial\n");
    let received = exited.received().await;
    assert_eq!(
        (received.stdout.as_str(), received.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(received.end, exited_record);
    let resumed = running.resume(1, "8-0").await.read_to_end().await;
    assert_eq!(resumed.len(), 1, "{resumed:?}");
    assert_eq!((resumed[0].name.as_str(), resumed[0].json()), ("end", lost));
    let unknown = format!("{path}/executions/exec-0000000000000000");
    caller.get(&unknown).await.expect_error(404, "not_found");
    expect_not_running(&running, &path).await;
}

/// Asserts that all routes that need a running environment answer 409.
async fn expect_not_running(execution: &Execution, path: &str) {
    let caller = &execution.caller;
    let start = json!({"command": ["true"]});
    let size = json!({"cols": 80, "rows": 24});
    for answer in [
        caller.post(&format!("{path}/executions"), &start).await,
        execution.stdin("close=true", "x").await,
        execution.post("signal", &json!({"signal": "TERM"})).await,
        execution.post("resize", &size).await,
        caller.delete(&execution.path).await,
    ] {
        answer.expect_error(409, "environment_not_running");
    }
    let refused = Socket::open_on(caller, 0, execution.socket(), "").await;
    let (status, body) = refused.err().unwrap();
    assert_eq!(
        (status, &body["error"]),
        (409, &json!("environment_not_running"))
    );
}

/// Starts an environment with an execution that has ended and one that runs, ends it by `end`, and
/// asserts that the running one is lost with the reason of the environment.
async fn expect_lost(caller: &Caller, body: &Value, end: impl AsyncFnOnce(&str, &str)) -> Value {
    let id = caller.create_running(body).await;
    let ended = caller.start_sh(&id, "exit 3").await;
    let ended_record = ended.ended().await;
    let mark = format!("3{:06}", rand::random::<u16>());
    let running = caller
        .start_sh(&id, &format!("echo up; exec sleep {mark}"))
        .await;
    let mut following = running.follow().await;
    let mut events = following.take(1).await;
    let text = format!("sleep {mark}");
    eventually("it runs", async || {
        caller.has_process(&id, &text).await.then_some(())
    })
    .await;
    end(&id, &text).await;
    let rest = timeout(END_DEADLINE, following.read_to_end()).await;
    events.extend(rest.expect("the follower ends in time"));
    let environment = caller.wait_until_ended(&id).await;
    let reason = environment["status_reason"].clone();
    let last = events.last().unwrap();
    assert_eq!(last.name, "end", "{last:?}");
    let record = running.get().await;
    for record in [&last.json(), &record] {
        assert_eq!(record["status"], "lost", "{record}");
        assert_eq!(record["status_reason"], reason, "{record}");
        for absent in ["exit_code", "signal"] {
            assert!(
                record.get(absent).is_none(),
                "an invented outcome: {record}"
            );
        }
    }
    let found = ended.get().await;
    for field in ["id", "status", "exit_code", "command", "ended_at"] {
        assert_eq!(found[field], ended_record[field], "{field}: {found}");
    }
    let request = json!({"command": ["true"]});
    let path = format!("/environments/{id}/executions");
    let refused = caller.post(&path, &request).await;
    refused.expect_error(409, "environment_not_running");
    reason
}

#[tokio::test]
async fn running_execution_is_lost_with_the_reason_of_its_environment() {
    let user = new_user().await;
    let caller = &user.caller;
    let main = script("until [ -e /tmp/go ]; do sleep 0.1; done; exit 5");
    let idle = small();
    let expired = expect_lost(caller, &idle, async |id: &str, _: &str| {
        let path = format!("/environments/{id}");
        let over = json!({"timeout": 1});
        caller.patch(&path, &over).await.expect_status(200);
    });
    let exited = expect_lost(caller, &main, async |id: &str, _: &str| {
        caller.sh(id, "touch /tmp/go").await;
    });
    let forced = expect_lost(caller, &idle, async |id: &str, _: &str| {
        let path = format!("/environments/{id}?force=true");
        caller.delete(&path).await.expect_status(204);
    });
    let reasons = tokio::join!(expired, exited, forced);
    let expected = (json!("EXPIRED"), json!("EXITED"), json!("DELETED"));
    assert_eq!(reasons, expected);
}

/// The routes of the gateways still show a running environment when its box no longer answers.
#[tokio::test]
async fn reads_just_after_the_end_of_a_box_are_answered() {
    let user = new_user().await;
    let caller = &user.caller;
    let id = caller.create_running(&small()).await;
    let ended = caller.start_sh(&id, "echo out").await;
    assert_eq!(ended.ended().await["stdout_bytes"], 4);
    let text = format!("sleep 3{:06}", rand::random::<u16>());
    let execution = caller.start_sh(&id, &format!("exec {text}")).await;
    eventually("it runs", async || {
        caller.has_process(&id, &text).await.then_some(())
    })
    .await;
    kill_box_running(&text);
    let path = execution.path.as_str();
    let list_path = format!("/environments/{id}/executions");
    let list_path = list_path.as_str();
    eventually("the execution is lost", async || {
        let reads = (0..caller.gateways()).map(|gateway| async move {
            let record = caller.get_on(gateway, path);
            tokio::join!(record, caller.get_on(gateway, list_path))
        });
        let mut is_lost = true;
        for (record, list) in join_all(reads).await {
            let record = record.expect_status(200);
            let list = list.expect_status(200);
            assert_eq!(list["executions"][0]["id"], record["id"], "{list}");
            is_lost &= record["status"] == "lost" && list["executions"][0]["status"] == "lost";
        }
        is_lost.then_some(())
    })
    .await;
    // Its output ended with the box.
    assert_eq!(ended.stdout().await, "");
}

#[tokio::test]
async fn execution_in_a_killed_box_is_lost_without_an_invented_outcome() {
    let user = new_user().await;
    let environment = small();
    let reason = expect_lost(&user.caller, &environment, async |_: &str, text: &str| {
        kill_box_running(text);
    })
    .await;
    assert!(reason.is_string());
}
