//! How executions end: by themselves, by a signal, at their timeout, and by a delete.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::boxes::{idle, small};
use crate::support::caller::new_user;
use crate::support::executions::is_active;
use crate::support::{eventually, eventually_some, repeat_until_below};

#[tokio::test]
async fn outcome_is_the_processes_own() {
    let idle = idle().await;
    let shell = |text: &str| json!({"command": ["sh", "-c", text]});
    let none = Value::Null;
    for (body, status, exit_code, signal) in [
        (shell("true"), "exited", json!(0), none.clone()),
        (shell("exit 137"), "exited", json!(137), none.clone()),
        (shell("kill -9 $$"), "signalled", none.clone(), json!(9)),
        (shell("kill -TERM $$"), "signalled", none.clone(), json!(15)),
        (
            json!({"command": ["no-such-program"]}),
            "failed_to_start",
            none.clone(),
            none.clone(),
        ),
        (
            json!({"command": ["/etc"]}),
            "failed_to_start",
            none.clone(),
            none.clone(),
        ),
    ] {
        let record = idle.user.caller.start(&idle.id, &body).await.ended().await;
        assert_eq!(record["status"], status, "{record}");
        assert_eq!(record["exit_code"], exit_code, "{record}");
        assert_eq!(record["signal"], signal, "{record}");
        let has_started = status != "failed_to_start";
        for (field, is_present) in [
            ("pid", has_started),
            ("started_at", has_started),
            ("duration_ms", has_started),
            ("status_reason", !has_started),
            ("ended_at", true),
        ] {
            assert_eq!(record.get(field).is_some(), is_present, "{field}: {record}");
        }
    }
}

#[tokio::test]
async fn timeout_kills_the_process_group_and_keeps_the_output() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let mark = format!("6{:05}", rand::random::<u16>());
    let text = format!("echo begun; sleep {mark} & sleep {mark}");
    let body = json!({"command": ["sh", "-c", text], "timeout": 0.5});
    repeat_until_below(Duration::from_secs(5), async || {
        let begun = Instant::now();
        let execution = caller.start(&idle.id, &body).await;
        let record = execution.ended().await;
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(500), "{took:?}");
        assert_eq!(record["status"], "timed_out", "{record}");
        assert!(record.get("exit_code").is_none(), "{record}");
        assert!(record["duration_ms"].as_u64().unwrap() >= 500, "{record}");
        let sleeping = format!("sleep {mark}");
        assert!(!caller.has_process(&idle.id, &sleeping).await);
        let output = execution.stdout().await;
        // On a machine that stalls the command may be killed before it writes.
        if output.is_empty() {
            return Duration::MAX;
        }
        assert_eq!(output, "begun\n");
        took
    })
    .await;
}

#[tokio::test]
async fn command_that_takes_all_memory_is_oom_killed() {
    let user = new_user().await;
    let id = user.caller.create_running(&small()).await;
    let body = json!({"command": ["tail", "/dev/zero"], "timeout": 60});
    let record = user.caller.start(&id, &body).await.ended().await;
    assert_eq!(record["status"], "oom_killed", "{record}");
    assert!(record.get("exit_code").is_none(), "{record}");
    let record = user.caller.start_sh(&id, "exit 4").await.ended().await;
    assert_eq!(
        record["exit_code"], 4,
        "the environment continues: {record}"
    );
}

#[tokio::test]
async fn delete_kills_the_process_group_and_keeps_the_record() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let mark = format!("5{:05}", rand::random::<u16>());
    let text = format!("echo begun; sleep {mark} & sleep {mark}");
    let execution = caller.start_sh(&idle.id, &text).await;
    assert!(is_active(&execution.record), "{}", execution.record);
    execution.follow().await.next().await.unwrap();
    for _ in 0..2 {
        caller.delete(&execution.path).await.expect_status(204);
    }
    let record = execution.ended().await;
    assert_eq!(record["status"], "signalled", "{record}");
    assert_eq!(record["signal"], 9, "{record}");
    let sleeping = format!("sleep {mark}");
    eventually_some("all are killed", Duration::from_secs(5), async || {
        (!caller.has_process(&idle.id, &sleeping).await).then_some(())
    })
    .await;
    // An ended one stays as it was.
    caller.delete(&execution.path).await.expect_status(204);
    assert_eq!(execution.get().await, record);
    assert_eq!(execution.stdout().await, "begun\n");

    let purge = format!("{}?purge=true", execution.path);
    caller.delete(&purge).await.expect_status(204);
    for path in [&execution.path, &execution.output("stream=stdout")] {
        caller.get(path).await.expect_error(404, "not_found");
    }
    let invalid = format!("{}?purge=1", execution.path);
    caller
        .delete(&invalid)
        .await
        .expect_error(400, "validation_failed");
}

#[tokio::test]
async fn background_process_keeps_running_and_its_later_output_is_dropped() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let mark = format!("4{:05}", rand::random::<u16>());
    let file = format!("/tmp/background-{mark}");
    let later = format!("until [ -e {file} ]; do sleep 0.1; done; echo late; touch {file}.done");
    let text = format!("({later}) & sleep {mark} & echo now; exit 3");
    let begun = Instant::now();
    let execution = caller.start_sh(&idle.id, &text).await;
    let record = execution.ended().await;
    assert_eq!(record["exit_code"], 3, "{record}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let has_written = format!("touch {file}; test -e {file}.done");
    eventually("it has written", async || {
        let reply = caller.sh(&idle.id, &has_written).await;
        (reply["exit_code"] == 0).then_some(())
    })
    .await;
    assert!(caller.has_process(&idle.id, &format!("sleep {mark}")).await);
    assert_eq!(execution.stdout().await, "now\n");
    assert_eq!(execution.get().await, record);
}
