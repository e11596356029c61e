//! Start, end, list, control and deletion.

use std::time::{Duration, Instant};

use agentbox_box_protocol::proto;
use agentbox_contracts::executions::control_execution::Control;
use agentbox_contracts::executions::{ExecutionStart, ExecutionStatus, Size, StdinMode};
use tonic::Code;

use super::calls::{
    code_of, command, control, delete, follow, get, kept, list, pairs, run, script, start, started,
    status,
};
use crate::support::{self, Session, TestBox, eventually, is_alive};

#[tokio::test]
async fn each_kind_of_end_has_its_status() {
    let (_boxd, client) = TestBox::idle().await;
    let slow = ExecutionStart {
        timeout_ms: 300,
        ..command(&["sleep", "1000"])
    };
    for (wanted, expected, exit_code, signal) in [
        (command(&["true"]), ExecutionStatus::Exited, Some(0), None),
        (script("exit 3"), ExecutionStatus::Exited, Some(3), None),
        (script("exit 137"), ExecutionStatus::Exited, Some(137), None),
        (
            script("kill -9 $$"),
            ExecutionStatus::Signalled,
            None,
            Some(9),
        ),
        (
            script("kill -TERM $$"),
            ExecutionStatus::Signalled,
            None,
            Some(15),
        ),
        (slow, ExecutionStatus::TimedOut, None, Some(9)),
        (
            command(&["no-such-program"]),
            ExecutionStatus::FailedToStart,
            None,
            None,
        ),
    ] {
        let ended = run(&client, wanted).await;
        assert_eq!(status(&ended), expected, "{ended:?}");
        assert_eq!((ended.exit_code, ended.signal), (exit_code, signal));
        let is_started = expected != ExecutionStatus::FailedToStart;
        assert_eq!(ended.status_reason.contains("not found"), !is_started);
        assert_eq!(ended.pid.is_some(), is_started);
        assert_eq!(ended.duration_ms.is_some(), is_started);
        let started_at = ended.started_unix_nanos.unwrap_or(ended.created_unix_nanos);
        assert!(ended.created_unix_nanos <= started_at);
        assert!(ended.ended_unix_nanos.unwrap() >= started_at);
    }
}

#[tokio::test]
async fn record_shows_request_and_resolved_defaults() {
    let (boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        name: "build".into(),
        labels: pairs(&[("team", "a")]),
        timeout_ms: 60_000,
        ..script("printf out; printf error >&2")
    };
    let ended = run(&client, wanted.clone()).await;
    assert_eq!((ended.id, ended.name), (wanted.id, wanted.name));
    assert_eq!(
        (ended.command, ended.labels),
        (wanted.command, wanted.labels)
    );
    assert_eq!(ended.timeout_ms, 60_000);
    assert_eq!((ended.stdout_bytes, ended.stderr_bytes), (3, 5));
    let own = boxd.dir.path().canonicalize().unwrap();
    assert_eq!(ended.working_dir, own.to_str().unwrap());
    assert!(!ended.user.is_empty());
    assert!(ended.tty.is_none());
}

#[tokio::test]
async fn start_with_used_id_answers_its_execution() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = script("echo once");
    let first = run(&client, wanted.clone()).await;
    let again = ExecutionStart {
        working_dir: "/nowhere".into(),
        ..wanted.clone()
    };
    assert_eq!(start(&client, again).await.unwrap(), first);
    let starts = (0..20).map(|_| {
        start(
            &client,
            ExecutionStart {
                id: "exec-concurrent".into(),
                ..script("sleep 1000")
            },
        )
    });
    let answers = futures::future::join_all(starts).await;
    let pids: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.unwrap().pid)
        .collect();
    assert!(
        pids[0].is_some() && pids.iter().all(|pid| *pid == pids[0]),
        "{pids:?}"
    );
    assert_eq!(list(&client).await.len(), 2);
}

#[tokio::test]
async fn get_waits_for_the_end_or_its_time() {
    let (_boxd, client) = TestBox::idle().await;
    let id = started(&client, script("sleep 0.2; exit 4")).await;
    let ended = get(&client, &id, 20_000).await.unwrap();
    assert_eq!(ended.exit_code, Some(4));
    let id = started(&client, command(&["sleep", "1000"])).await;
    let began = Instant::now();
    let running = get(&client, &id, 200).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(status(&running), ExecutionStatus::Running);
    assert_eq!(
        get(&client, "exec-x", 0).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn executions_are_listed_newest_first_in_bounded_messages() {
    let (_boxd, client) = TestBox::idle().await;
    assert!(list(&client).await.is_empty());
    let mut ids = Vec::new();
    for _ in 0..30 {
        let wanted = ExecutionStart {
            labels: pairs(&[("long", &"x".repeat(20_000))]),
            ..command(&["true"])
        };
        ids.push(started(&client, wanted).await);
    }
    ids.reverse();
    let listed: Vec<String> = list(&client).await.into_iter().map(|e| e.id).collect();
    assert_eq!(listed, ids);
}

#[tokio::test]
async fn unusable_directory_and_unknown_user_are_named_in_metadata() {
    let (_boxd, client) = TestBox::idle().await;
    for (directory, user, code) in [
        ("/nowhere", "", "working_dir_not_found"),
        ("/etc/passwd", "", "working_dir_not_found"),
        ("", "no-such-user", "user_not_found"),
    ] {
        let wanted = ExecutionStart {
            working_dir: directory.into(),
            user: user.into(),
            ..command(&["true"])
        };
        let error = start(&client, wanted).await.unwrap_err();
        assert_eq!(
            (error.code(), code_of(&error)),
            (Code::InvalidArgument, code)
        );
        let wanted = proto::StartCommand {
            working_dir: directory.into(),
            user: user.into(),
            ..support::start(&["true"])
        };
        let first = proto::run_input::Input::Start(wanted);
        let error = Session::open(&client, first).await.err().unwrap();
        assert_eq!(
            (error.code(), code_of(&error)),
            (Code::InvalidArgument, code)
        );
    }
    assert!(list(&client).await.is_empty());
    let wanted = ExecutionStart {
        command: vec!["a\0".into()],
        ..command(&[])
    };
    let error = start(&client, wanted).await.unwrap_err();
    assert!(error.message().starts_with("command: "), "{error:?}");
}

#[tokio::test]
async fn command_runs_as_the_given_user() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        user: "65534".into(),
        ..script("id -u")
    };
    let ended = run(&client, wanted).await;
    assert_eq!(kept(&client, &ended.id).await.text(), "65534\n");
    assert!(
        ["nobody", "65534"].contains(&ended.user.as_str()),
        "{ended:?}"
    );
    let wanted = proto::StartCommand {
        user: "65534".into(),
        merge_stderr: true,
        ..support::sh("id -u >&2")
    };
    let outcome = support::run(&client, wanted).await;
    assert_eq!((outcome.text(), outcome.code()), ("65534\n", 0));
}

#[tokio::test]
async fn user_who_stops_own_processes_does_not_stop_the_box() {
    const USER: &str = "64399:64399";
    let (_boxd, client) = TestBox::idle().await;
    // As long as a test may take. The kernel leaves out the sender, and other users' processes.
    let stop_all = "i=0; while [ $i -lt 3000000 ]; do kill -STOP -1; i=$((i+1)); done 2>/dev/null";
    let of_user = |wanted: ExecutionStart| ExecutionStart {
        user: USER.into(),
        working_dir: "/".into(),
        ..wanted
    };
    let stopping = start(&client, of_user(script(stop_all))).await.unwrap();
    assert_eq!(status(&stopping), ExecutionStatus::Running);
    // It is stopped before or after it executes.
    let stopped = started(&client, of_user(command(&["true"]))).await;
    let other = run(&client, command(&["true"])).await;
    assert_eq!(status(&other), ExecutionStatus::Exited);
    for id in [stopping.id, stopped] {
        delete(&client, &id, false).await.unwrap();
    }
}

#[tokio::test]
async fn command_gets_environment_stdin_bytes_and_one_pipe() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        env: pairs(&[("GREETING", "hi")]),
        working_dir: "/tmp".into(),
        stdin: StdinMode::Bytes.into(),
        stdin_bytes: vec![b'x'; 4 * 1024 * 1024].into(),
        merge_stderr: true,
        ..script("pwd; echo $GREETING >&2; wc -c")
    };
    let id = started(&client, wanted).await;
    let finished = follow(&client, &id, None).await.finish().await;
    assert_eq!(finished.text(), "/tmp\nhi\n4194304\n");
    assert!(finished.data[1].is_empty());
    assert_eq!(finished.execution.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn arguments_up_to_the_kernels_limit_are_passed() {
    let (_boxd, client) = TestBox::idle().await;
    let mut wanted = script("echo $#");
    wanted.command.push("name".into());
    wanted.command.extend((0..14).map(|_| "x".repeat(120_000)));
    let ended = run(&client, wanted).await;
    assert_eq!(kept(&client, &ended.id).await.text(), "14\n");
    let shown: usize = ended.command.iter().map(String::len).sum();
    assert!(shown <= 16 * 1024, "{shown}");
}

#[tokio::test]
async fn delete_kills_group_and_jobs_and_keeps_the_record() {
    let (_boxd, client) = TestBox::idle().await;
    // The shell complains that it has no terminal, which could come between the lines.
    let jobs = "sleep 1000 & echo $!; sleep 1001 | cat & echo $!; echo up; wait";
    let wanted = script(&format!("exec 2> /dev/null; set -m; {jobs}"));
    let id = started(&client, wanted).await;
    let text = follow(&client, &id, None).await.until("up").await;
    let children: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(children.len(), 2, "{text}");
    for _ in 0..2 {
        let deleted = delete(&client, &id, false).await.unwrap();
        assert_eq!(status(&deleted), ExecutionStatus::Signalled);
        assert_eq!(deleted.signal, Some(9));
    }
    for child in children {
        eventually("the job is dead", async || !is_alive(child)).await;
    }
    assert!(kept(&client, &id).await.text().contains("up"));
    delete(&client, &id, true).await.unwrap();
    let error = get(&client, &id, 0).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn purge_of_a_running_execution_kills_and_forgets_it() {
    let (_boxd, client) = TestBox::idle().await;
    let running = start(&client, command(&["sleep", "1000"])).await.unwrap();
    delete(&client, &running.id, true).await.unwrap();
    assert!(list(&client).await.is_empty());
    let pid = i32::try_from(running.pid.unwrap()).unwrap();
    eventually("the command is dead", async || !is_alive(pid)).await;
}

#[tokio::test]
async fn signals_and_sizes_reach_the_command_and_the_record() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        tty: Some(Size { cols: 80, rows: 24 }),
        ..script(
            "trap 'stty size' WINCH; trap 'exit 7' USR1; echo up; while :; do sleep 0.05; done",
        )
    };
    let id = started(&client, wanted).await;
    let mut output = follow(&client, &id, None).await;
    output.until("up").await;
    let size = Size { cols: 55, rows: 11 };
    let resized = control(&client, &id, Control::Resize(size)).await.unwrap();
    assert_eq!(resized.tty, Some(size));
    output.until("11 55").await;
    let unknown = control(&client, &id, Control::Signal("SIGFOO".into())).await;
    assert_eq!(unknown.unwrap_err().code(), Code::InvalidArgument);
    let plain = started(&client, command(&["sleep", "1000"])).await;
    let error = control(&client, &plain, Control::Resize(size)).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("no terminal"), "{error:?}");
    control(&client, &id, Control::Signal("usr1".into()))
        .await
        .unwrap();
    let ended = get(&client, &id, 20_000).await.unwrap();
    assert_eq!(ended.exit_code, Some(7));
    for late in [Control::Signal("TERM".into()), Control::Resize(size)] {
        let error = control(&client, &id, late).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("has ended"), "{error:?}");
    }
}

#[tokio::test]
async fn execution_outlives_its_connection_unless_it_has_a_grace() {
    let (boxd, client) = TestBox::idle().await;
    let (cut, relay) = boxd.abortable_client().await;
    let lasting = started(&cut, command(&["sleep", "1000"])).await;
    let wanted = ExecutionStart {
        // Longer than the machine may stall before the follower is there.
        orphan_grace_ms: 5000,
        ..command(&["sleep", "1000"])
    };
    let orphan = started(&cut, wanted).await;
    let _follower = follow(&cut, &orphan, None).await;
    let followed = get(&client, &orphan, 6000).await.unwrap();
    assert_eq!(status(&followed), ExecutionStatus::Running);
    relay.abort();
    let ended = get(&client, &orphan, 20_000).await.unwrap();
    assert_eq!(status(&ended), ExecutionStatus::Signalled);
    let running = get(&client, &lasting, 0).await.unwrap();
    assert_eq!(status(&running), ExecutionStatus::Running);
}
