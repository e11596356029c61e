//! Commands to their end.

use std::time::{Duration, Instant};

use agentbox_contracts::environment::Status;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::{Open, OpenKind};

use crate::support::gateway::{command, result, shell};
use crate::support::{TestBox, World, eventually, is_alive, pattern};

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_the_commands_own_or_says_why_it_has_none() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    std::fs::write(inside.path("plain"), "not a program").unwrap();
    let plain = inside.path("plain");
    for (request, exit_code, says) in [
        (command(&["true"]), 0, ""),
        (shell("exit 1"), 1, ""),
        (shell("exit 255"), 255, ""),
        (shell("kill -9 $$"), 137, ""),
        (shell("kill -TERM $$"), 143, ""),
        (command(&["no-such-program"]), 127, "no-such-program"),
        (command(&[plain.to_str().unwrap()]), 126, "plain"),
    ] {
        let words = request.command.clone();
        let answer = world.gateway.exec(&inside, request).await.unwrap();
        assert_eq!(answer.exit.exit_code, exit_code, "{words:?}");
        assert!(
            !answer.exit.timed_out && !answer.exit.oom_killed,
            "{words:?}"
        );
        let stderr = String::from_utf8_lossy(&answer.stderr);
        assert!(stderr.contains(says), "{words:?}: {stderr}");
        assert!(answer.stdout.is_empty(), "{words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_kills_the_group_and_answers_within_a_second_with_what_was_printed() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let mut request = shell("echo partial; sleep 600 & echo $! > child; wait");
    request.timeout_ms = 500;
    let began = Instant::now();
    let answer = world.gateway.exec(&inside, request).await.unwrap();
    let took = began.elapsed();
    assert_eq!((answer.exit.exit_code, answer.exit.timed_out), (124, true));
    assert_eq!(answer.stdout, b"partial\n");
    assert!(took < Duration::from_millis(1500), "{took:?}");
    let child = inside.number("child").await;
    eventually("the child is dead", Duration::from_secs(1), async || {
        !is_alive(child)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_any_size_and_any_bytes_arrives_exactly() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    for size in [0, 1, 200_000, 300_000, 9 * 1024 * 1024] {
        let bytes = pattern(size);
        std::fs::write(inside.path("bytes"), &bytes).unwrap();
        let answer = world
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
async fn beyond_the_cap_output_is_dropped_and_the_command_goes_on() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let mut request = shell("head -c 5000000 /dev/zero; echo end >&2; exit 7");
    request.max_output_bytes = 1000;
    let answer = world.gateway.exec(&inside, request).await.unwrap();
    assert_eq!(answer.stdout, vec![0; 1000]);
    assert!(answer.stdout_truncated && !answer.stderr_truncated);
    assert_eq!(answer.stderr, b"end\n");
    assert_eq!(answer.exit.exit_code, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_working_directory_are_as_asked() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let mut request = shell("echo \"$GREETING in $(pwd)\"");
    request
        .env
        .insert("GREETING".into(), "hello\nworld = 'x'".into());
    request.working_dir = Some("/usr".into());
    let answer = world.gateway.exec(&inside, request).await.unwrap();
    assert_eq!(
        String::from_utf8(answer.stdout).unwrap(),
        "hello\nworld = 'x' in /usr\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_child_that_holds_the_pipe_does_not_hold_the_answer() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let began = Instant::now();
    let answer = world
        .gateway
        .exec(&inside, shell("sleep 20 & echo done"))
        .await
        .unwrap();
    assert_eq!(answer.stdout, b"done\n");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_dropped_kills_its_command_at_once() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let request = shell("sleep 600 & echo $! > child; wait");
    let session = world
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
async fn what_is_not_running_is_told_so_and_nothing_is_started() {
    let world = World::start().await;
    let mut inside = TestBox::idle().await;
    let of = |status, address| Open {
        environment: inside.id.clone(),
        address,
        status,
        kind: OpenKind::Exec(command(&["true"])),
    };
    let address = Some(inside.address);
    for open in [
        of(Status::Pending, address),
        of(Status::Terminating, address),
        of(Status::Terminated, address),
        of(Status::Running, None),
    ] {
        let refused = async { result(world.gateway.open_as(&open).await?).await };
        assert_eq!(
            refused.await.unwrap_err().code,
            ErrorCode::NotRunning,
            "{:?}",
            open.status
        );
    }
    inside.kill();
    let refused = world
        .gateway
        .exec(&inside, command(&["true"]))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotRunning, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_more_than_a_box_may_have_is_refused_and_the_others_go_on() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let mut open = Vec::new();
    // The process that the tests start allows 8.
    for number in 0..8 {
        let script = format!("echo $$ > pid-{number}; read line; echo $line");
        let mut request = shell(&script);
        request.stdin_follows = true;
        open.push(
            world
                .gateway
                .open(&inside, OpenKind::Exec(request))
                .await
                .unwrap(),
        );
        inside.number(&format!("pid-{number}")).await;
    }
    let refused = world
        .gateway
        .exec(&inside, command(&["true"]))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable, "{refused}");
    assert!(refused.message.contains('8'), "{refused}");
    assert!(
        world.gateway.usage(&inside).await.is_ok(),
        "a short request still fits"
    );
    drop(open);
    eventually("room again", Duration::from_secs(5), async || {
        world
            .gateway
            .exec(&inside, command(&["true"]))
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_boxd_refuses_is_the_callers_mistake() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let refused = world.gateway.exec(&inside, command(&[])).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Validation, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_what_boxd_says_and_a_dead_box_has_none() {
    let world = World::start().await;
    let mut inside = TestBox::idle().await;
    let usage = world.gateway.usage(&inside).await.unwrap();
    assert!(usage.memory_bytes > 0, "{usage:?}");
    inside.kill();
    let error = world.gateway.usage(&inside).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotRunning);
}
