//! Exec sessions.

use std::time::{Duration, Instant};

use agentbox_contracts::environment::Status;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::{FromBox, Open, OpenKind, ToBox};
use agentbox_testing::{eventually_some, repeat_until_below};

use crate::support::gateway::{command, result, shell};
use crate::support::{System, TestBox, eventually, is_alive, pattern};

#[tokio::test(flavor = "multi_thread")]
async fn exit_code_is_the_commands_or_names_the_reason() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    std::fs::write(inside.path("plain"), "not a program").unwrap();
    let plain = inside.path("plain");
    for (request, exit_code, printed) in [
        (command(&["true"]), 0, ""),
        (shell("exit 1"), 1, ""),
        (shell("exit 255"), 255, ""),
        (shell("kill -9 $$"), 137, ""),
        (shell("kill -TERM $$"), 143, ""),
        (command(&["no-such-program"]), 127, "no-such-program"),
        (command(&[plain.to_str().unwrap()]), 126, "plain"),
    ] {
        let words = request.command.clone();
        let answer = system.gateway.exec(&inside, request).await.unwrap();
        assert_eq!(answer.exit.exit_code, exit_code, "{words:?}");
        assert!(
            !answer.exit.timed_out && !answer.exit.oom_killed,
            "{words:?}"
        );
        let stderr = String::from_utf8_lossy(&answer.stderr);
        assert!(stderr.contains(printed), "{words:?}: {stderr}");
        assert!(answer.stdout.is_empty(), "{words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn timeout_kills_group_and_returns_output_within_a_second() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    repeat_until_below(Duration::from_secs(1), async || {
        let mut request = shell("sleep 600 & echo $! > child; echo partial; wait");
        request.timeout_ms = 1000;
        let began = Instant::now();
        let answer = system.gateway.exec(&inside, request).await.unwrap();
        let took = began.elapsed();
        assert_eq!((answer.exit.exit_code, answer.exit.timed_out), (124, true));
        if answer.stdout.is_empty() {
            // The shell was stalled for the whole timeout.
            return took;
        }
        assert_eq!(answer.stdout, b"partial\n");
        let child = inside.number("child").await;
        eventually("the child is dead", Duration::from_secs(1), async || {
            !is_alive(child)
        })
        .await;
        took.saturating_sub(Duration::from_secs(1))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_any_size_arrives_exactly() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    for size in [0, 1, 200_000, 300_000, 9 * 1024 * 1024] {
        let bytes = pattern(size);
        std::fs::write(inside.path("bytes"), &bytes).unwrap();
        let answer = system
            .gateway
            .exec(&inside, shell("cat bytes; cat bytes >&2; exit 3"))
            .await
            .unwrap();
        assert!(answer.stdout == bytes && answer.stderr == bytes, "{size}");
        assert_eq!(answer.exit.exit_code, 3);
        assert!(!answer.stdout_truncated && !answer.stderr_truncated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_exec_sends_all_output_and_then_its_exit() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let bytes = pattern(9 * 1024 * 1024);
    std::fs::write(inside.path("bytes"), &bytes).unwrap();
    let mut request = shell("echo first; read line; cat bytes; echo end >&2; exit 3");
    request.stream = true;
    request.stdin_follows = true;
    request.max_output_bytes = 10;
    let mut session = system
        .gateway
        .open(&inside, OpenKind::Exec(request))
        .await
        .unwrap();
    assert_eq!(session.recv().await.unwrap(), Some(FromBox::CommandStarted));
    // It arrives while the command waits for its stdin.
    let first = session.recv().await.unwrap();
    assert_eq!(first, Some(FromBox::Stdout("first\n".into())));
    session.send(ToBox::Data("go\n".into())).await.unwrap();
    session.send(ToBox::End).await.unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit = loop {
        match session.recv().await.unwrap() {
            Some(FromBox::Stdout(bytes)) => stdout.extend_from_slice(&bytes),
            Some(FromBox::Stderr(bytes)) => stderr.extend_from_slice(&bytes),
            Some(FromBox::Exit(exit)) => break exit,
            other => panic!("{other:?}"),
        }
    };
    assert!(stdout == bytes, "{} bytes", stdout.len());
    assert_eq!((stderr.as_slice(), exit.exit_code), (&b"end\n"[..], 3));
    assert_eq!(session.recv().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_exec_that_cannot_be_started_prints_the_reason() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let mut request = command(&["no-such-program"]);
    request.stream = true;
    let mut session = system
        .gateway
        .open(&inside, OpenKind::Exec(request))
        .await
        .unwrap();
    let Some(FromBox::Stderr(reason)) = session.recv().await.unwrap() else {
        panic!("no reason");
    };
    assert!(String::from_utf8_lossy(&reason).contains("no-such-program"));
    let Some(FromBox::Exit(exit)) = session.recv().await.unwrap() else {
        panic!("no exit");
    };
    assert_eq!(exit.exit_code, 127);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_over_cap_is_dropped_and_command_continues() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let mut request = shell("head -c 5000000 /dev/zero; echo end >&2; exit 7");
    request.max_output_bytes = 1000;
    let answer = system.gateway.exec(&inside, request).await.unwrap();
    assert_eq!(answer.stdout, vec![0; 1000]);
    assert!(answer.stdout_truncated && !answer.stderr_truncated);
    assert_eq!(answer.stderr, b"end\n");
    assert_eq!(answer.exit.exit_code, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn command_gets_requested_environment_and_directory() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let mut request = shell("echo \"$GREETING in $(pwd)\"");
    request
        .env
        .insert("GREETING".into(), "hello\nworld = 'x'".into());
    request.working_dir = Some("/usr".into());
    let answer = system.gateway.exec(&inside, request).await.unwrap();
    assert_eq!(
        String::from_utf8(answer.stdout).unwrap(),
        "hello\nworld = 'x' in /usr\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn background_child_with_open_pipe_does_not_delay_result() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    repeat_until_below(Duration::from_secs(3), async || {
        let began = Instant::now();
        let answer = system
            .gateway
            .exec(&inside, shell("sleep 20 & echo done"))
            .await
            .unwrap();
        assert_eq!(answer.stdout, b"done\n");
        began.elapsed()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_session_kills_command_at_once() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let request = shell("sleep 600 & echo $! > child; wait");
    let session = system
        .gateway
        .open(&inside, OpenKind::Exec(request))
        .await
        .unwrap();
    let child = inside.number("child").await;
    assert!(is_alive(child));
    let began = Instant::now();
    drop(session);
    eventually("the command is dead", Duration::from_secs(5), async || {
        !is_alive(child)
    })
    .await;
    println!("killed {:?} after the session was dropped", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_in_stopped_box_is_refused_without_start() {
    let system = System::start().await;
    let mut inside = TestBox::idle().await;
    let open_with = |status, address| Open {
        environment: inside.id.clone(),
        owner: None,
        address,
        status,
        kind: OpenKind::Exec(command(&["true"])),
    };
    let address = Some(inside.address);
    for open in [
        open_with(Status::Pending, address),
        open_with(Status::Terminating, address),
        open_with(Status::Terminated, address),
        open_with(Status::Running, None),
    ] {
        let refused = async { result(system.gateway.open_as(&open).await?).await };
        assert_eq!(
            refused.await.unwrap_err().code,
            ErrorCode::NotRunning,
            "{:?}",
            open.status
        );
    }
    inside.kill();
    let refused = system
        .gateway
        .exec(&inside, command(&["true"]))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotRunning, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn session_over_box_limit_is_refused_and_others_continue() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let mut open = Vec::new();
    // The tests' exec-proxy allows 8.
    for number in 0..8 {
        let script = format!("echo $$ > pid-{number}; read line; echo $line");
        let mut request = shell(&script);
        request.stdin_follows = true;
        open.push(
            system
                .gateway
                .open(&inside, OpenKind::Exec(request))
                .await
                .unwrap(),
        );
        inside.number(&format!("pid-{number}")).await;
    }
    let refused = system
        .gateway
        .exec(&inside, command(&["true"]))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable, "{refused}");
    assert!(refused.message.contains('8'), "{refused}");
    eventually(
        "a short request does not count as a session",
        Duration::from_secs(10),
        async || system.gateway.usage(&inside).await.is_ok(),
    )
    .await;
    drop(open);
    eventually(
        "a session is free again",
        Duration::from_secs(5),
        async || {
            system
                .gateway
                .exec(&inside, command(&["true"]))
                .await
                .is_ok()
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn command_refused_by_boxd_is_a_validation_error() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let refused = system
        .gateway
        .exec(&inside, command(&["a\0b"]))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::Validation, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_read_from_boxd_and_dead_box_has_none() {
    let system = System::start().await;
    let mut inside = TestBox::idle().await;
    let within = Duration::from_secs(10);
    let usage = eventually_some("the usage is read", within, async || {
        system.gateway.usage(&inside).await.ok()
    })
    .await;
    assert!(usage.memory_bytes > 0, "{usage:?}");
    inside.kill();
    let error = system.gateway.usage(&inside).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotRunning);
}
