//! Log sessions: while the box runs, when it ends, and afterwards.

use std::time::{Duration, Instant};

use agentbox_contracts::environment::Status;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::LogsRequest;
use agentbox_contracts::logs::OutputStream;
use agentbox_testing::assert_fastest_below;

use crate::support::gateway::{Logs, logs_of};
use crate::support::{System, TestBox, eventually};

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|number| format!("line {number}")).collect()
}

fn following() -> LogsRequest {
    LogsRequest {
        follow: true,
        ..LogsRequest::default()
    }
}

const TEN_LINES: &str = "for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; done; exec sleep 600";

/// A box that has printed all of [`TEN_LINES`].
async fn ten_lines(system: &System) -> TestBox {
    let inside = TestBox::running(TEN_LINES).await;
    eventually("ten lines are kept", Duration::from_secs(10), async || {
        let open = logs_of(&inside, Status::Running, LogsRequest::default());
        system.gateway.logs(&open).await.unwrap().entries.len() == 10
    })
    .await;
    inside
}

/// Prints a line, and then each line that is written to its pipe, without an end.
const PIPED: &str = "mkfifo pipe; echo first; exec cat 0<>pipe";

/// Lets a box that runs [`PIPED`] print a line.
async fn print_piped(inside: &TestBox, line: &str) {
    // It blocks until the box has opened the pipe.
    let (path, line) = (inside.path("pipe"), format!("{line}\n"));
    let written = tokio::task::spawn_blocking(move || std::fs::write(path, line));
    written.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_lines_are_selected_by_sequence_tail_and_time() {
    let system = System::start().await;
    let inside = ten_lines(&system).await;
    let get = async |request| {
        system
            .gateway
            .logs(&logs_of(&inside, Status::Running, request))
            .await
            .unwrap()
    };
    let all = get(LogsRequest::default()).await;
    assert_eq!(all.lines(), numbers(1..=10));
    assert_eq!((all.lost, all.ended), (0, Some(false)));
    let sequences: Vec<u64> = all.entries.iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (1..=10).collect::<Vec<u64>>());
    assert!(
        all.entries
            .iter()
            .all(|entry| entry.stream == OutputStream::Stdout)
    );

    let tail = get(LogsRequest {
        tail: Some(3),
        ..LogsRequest::default()
    })
    .await;
    assert_eq!(tail.lines(), numbers(8..=10));
    let rest = get(LogsRequest {
        from_sequence: Some(7),
        ..LogsRequest::default()
    })
    .await;
    assert_eq!(rest.lines(), numbers(7..=10));
    let since = all.entries[4].timestamp;
    let since = get(LogsRequest {
        since: Some(since),
        ..LogsRequest::default()
    })
    .await;
    assert!(
        since.lines().ends_with(&numbers(5..=10)),
        "{:?}",
        since.lines()
    );
    let none = get(LogsRequest {
        tail: Some(0),
        ..LogsRequest::default()
    })
    .await;
    assert!(none.entries.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_gets_each_line_when_printed() {
    let system = System::start().await;
    let inside = TestBox::running(PIPED).await;
    let open = logs_of(&inside, Status::Running, following());
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let mut logs = Logs::default();
    while logs.lines() != ["first"] {
        assert!(!logs.take(session.recv().await.unwrap()));
    }
    let mut times = Vec::new();
    for count in 2..=4 {
        let began = Instant::now();
        print_piped(&inside, "next").await;
        while logs.entries.len() < count {
            assert!(!logs.take(session.recv().await.unwrap()));
        }
        times.push(began.elapsed());
    }
    assert_eq!(logs.lines(), ["first", "next", "next", "next"]);
    assert_fastest_below(times, Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_zero_follower_gets_only_new_lines() {
    let system = System::start().await;
    let inside = TestBox::running(PIPED).await;
    eventually(
        "the first line is kept",
        Duration::from_secs(10),
        async || {
            let open = logs_of(&inside, Status::Running, LogsRequest::default());
            system.gateway.logs(&open).await.unwrap().entries.len() == 1
        },
    )
    .await;
    let request = LogsRequest {
        tail: Some(0),
        ..following()
    };
    let open = logs_of(&inside, Status::Running, request);
    let mut session = system.gateway.open_as(&open).await.unwrap();
    // No entry may arrive before new lines are printed.
    let quiet = tokio::time::timeout(Duration::from_millis(500), session.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let mut logs = Logs::default();
    while logs.entries.is_empty() {
        // Repeated, because a line is old for a follower that has not reached boxd yet.
        print_piped(&inside, "new").await;
        if let Ok(received) = tokio::time::timeout(Duration::from_secs(1), session.recv()).await {
            assert!(!logs.take(received.unwrap()));
        }
    }
    assert!(logs.lines().iter().all(|line| line == "new"), "{logs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_gets_all_lines_when_main_command_ends() {
    let system = System::start().await;
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; exit 3";
    let mut inside =
        TestBox::running(&format!("while ! [ -e go ]; do sleep 0.02; done; {script}")).await;
    let open = logs_of(&inside, Status::Running, following());
    let mut session = system.gateway.open_as(&open).await.unwrap();
    std::fs::write(inside.path("go"), "").unwrap();
    let follow = async {
        let mut logs = Logs::default();
        while !logs.take(session.recv().await.unwrap()) {}
        logs
    };
    // Archives the output, as the scheduler does after the exit.
    let settle = async {
        inside.ended().await;
        system.gateway.archive(&inside).await.unwrap()
    };
    let (logs, archived) = tokio::join!(follow, settle);
    assert_eq!(logs.lines(), numbers(1..=3000));
    assert_eq!((logs.lost, logs.ended), (0, Some(true)));
    assert_eq!(archived.entries, 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_gets_all_lines_when_box_is_killed() {
    let system = System::start().await;
    let mut inside = ten_lines(&system).await;
    let open = logs_of(&inside, Status::Running, following());
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let mut logs = Logs::default();
    while logs.entries.len() < 10 {
        assert!(!logs.take(session.recv().await.unwrap()));
    }
    inside.kill();
    system.gateway.archive(&inside).await.unwrap();
    while !logs.take(session.recv().await.unwrap()) {}
    assert_eq!(logs.lines(), numbers(1..=10));
    assert_eq!((logs.lost, logs.ended), (0, Some(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_box_without_archive_is_not_reported_as_ended() {
    let system = System::start().await;
    let mut inside = ten_lines(&system).await;
    let open = logs_of(&inside, Status::Running, following());
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let mut logs = Logs::default();
    while logs.entries.len() < 10 {
        assert!(!logs.take(session.recv().await.unwrap()));
    }
    inside.kill();
    let error = session.recv().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::BoxLost, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_box_has_no_lines() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let open = logs_of(&inside, Status::Pending, LogsRequest::default());
    let logs = system.gateway.logs(&open).await.unwrap();
    assert_eq!((logs.entries.len(), logs.ended), (0, Some(false)));
    let open = logs_of(&inside, Status::Pending, following());
    let error = system.gateway.logs(&open).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotRunning);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_and_binary_lines_arrive_exactly() {
    let system = System::start().await;
    let script =
        r"head -c 40000 /dev/zero | tr '\0' x; echo; printf '\377\376\n' >&2; exec sleep 600";
    let inside = TestBox::running(script).await;
    let mut logs = Logs::default();
    eventually(
        "both streams are kept",
        Duration::from_secs(10),
        async || {
            let open = logs_of(&inside, Status::Running, LogsRequest::default());
            logs = system.gateway.logs(&open).await.unwrap();
            logs.entries
                .iter()
                .any(|entry| entry.stream == OutputStream::Stderr)
                && logs
                    .entries
                    .iter()
                    .any(|entry| !entry.partial && entry.stream == OutputStream::Stdout)
        },
    )
    .await;
    let bytes_of = |stream| {
        let entries = logs
            .entries
            .iter()
            .filter(move |entry| entry.stream == stream);
        entries
            .flat_map(|entry| entry.line.clone())
            .collect::<Vec<u8>>()
    };
    assert!(bytes_of(OutputStream::Stdout) == vec![b'x'; 40_000]);
    assert_eq!(bytes_of(OutputStream::Stderr), [0xff, 0xfe]);
    assert!(logs.entries.iter().any(|entry| entry.partial));
}
