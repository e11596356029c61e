//! Logs of ended boxes.

use std::time::Duration;

use agentbox_box_protocol::output::read_newest;
use agentbox_contracts::environment::Status;
use agentbox_contracts::exec::LogsRequest;

use crate::support::gateway::logs_of;
use crate::support::{System, TestBox, eventually, proxy};

#[tokio::test(flavor = "multi_thread")]
async fn ended_environment_logs_come_from_archive() {
    let system = System::start().await;
    let mut inside = TestBox::running("echo one; echo two >&2; exit 3").await;
    inside.ended().await;
    assert_eq!(system.gateway.archive(&inside).await.unwrap().entries, 2);
    // The box is removed.
    std::fs::remove_dir_all(proxy::output_dir(&inside.id)).unwrap();

    for status in [Status::Failed, Status::Terminated] {
        for follow in [false, true] {
            let request = LogsRequest {
                follow,
                ..LogsRequest::default()
            };
            let logs = system
                .gateway
                .logs(&logs_of(&inside, status, request))
                .await
                .unwrap();
            let mut lines = logs.lines();
            lines.sort();
            assert_eq!(lines, ["one", "two"]);
            assert_eq!((logs.lost, logs.ended), (0, Some(true)));
        }
    }
    let request = LogsRequest {
        from_sequence: Some(2),
        ..LogsRequest::default()
    };
    let logs = system
        .gateway
        .logs(&logs_of(&inside, Status::Failed, request))
        .await
        .unwrap();
    assert_eq!(logs.entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_archive_of_lost_box_keeps_stored_entries() {
    let system = System::start().await;
    let mut inside = TestBox::running("echo kept").await;
    inside.ended().await;
    for round in 0..3 {
        let stored = system.gateway.archive(&inside).await.unwrap();
        assert_eq!(stored.entries, 1, "round {round}");
        let _ = std::fs::remove_dir_all(proxy::output_dir(&inside.id));
    }
    let open = logs_of(&inside, Status::Terminated, LogsRequest::default());
    assert_eq!(system.gateway.logs(&open).await.unwrap().lines(), ["kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_box_keeps_its_unfinished_line() {
    let system = System::start().await;
    let mut inside = TestBox::running("echo whole; printf unfinished; exec sleep 600").await;
    let directory = proxy::output_dir(&inside.id);
    eventually("both are stored", Duration::from_secs(10), async || {
        read_newest(&directory, 1 << 20).unwrap().len() == 2
    })
    .await;
    inside.kill();
    assert_eq!(system.gateway.archive(&inside).await.unwrap().entries, 2);
    let open = logs_of(&inside, Status::Terminated, LogsRequest::default());
    let logs = system.gateway.logs(&open).await.unwrap();
    assert_eq!(logs.lines(), ["whole", "unfinished"]);
    let partial: Vec<bool> = logs.entries.iter().map(|entry| entry.partial).collect();
    assert_eq!((partial, logs.lost), (vec![false, true], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_without_output_has_empty_archive() {
    let system = System::start().await;
    let mut inside = TestBox::idle().await;
    inside.terminate();
    inside.ended().await;
    assert_eq!(system.gateway.archive(&inside).await.unwrap().entries, 0);
    let open = logs_of(&inside, Status::Terminated, LogsRequest::default());
    let logs = system.gateway.logs(&open).await.unwrap();
    assert_eq!((logs.entries.len(), logs.ended), (0, Some(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn archive_keeps_newest_mebibyte_and_reports_missing_entries() {
    let system = System::start().await;
    let script =
        "i=0; while [ $i -lt 300 ]; do i=$((i+1)); head -c 8191 /dev/zero | tr '\\0' x; echo; done";
    let mut inside = TestBox::running(script).await;
    inside.ended().await;
    let stored = system.gateway.archive(&inside).await.unwrap().entries;
    assert!((100..=128).contains(&stored), "{stored}");
    let request = LogsRequest {
        from_sequence: Some(2),
        ..LogsRequest::default()
    };
    let open = logs_of(&inside, Status::Terminated, request);
    let asked = system.gateway.logs(&open);
    let logs = tokio::time::timeout(Duration::from_secs(10), asked)
        .await
        .unwrap()
        .unwrap();
    let last = logs.entries.last().unwrap().sequence;
    assert_eq!(last, 300);
    assert_eq!(logs.entries.len() as u64, stored);
    let first = logs.entries[0].sequence;
    assert_eq!(logs.lost, first - 2);
    for (tail, lost) in [(None, first - 1), (Some(290), 290 - stored), (Some(1), 0)] {
        let request = LogsRequest {
            tail,
            ..LogsRequest::default()
        };
        let open = logs_of(&inside, Status::Terminated, request);
        let logs = system.gateway.logs(&open).await.unwrap();
        assert_eq!(logs.lost, lost, "{tail:?}");
    }
}
