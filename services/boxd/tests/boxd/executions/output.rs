//! Output: many readers, offsets, gaps.

use std::time::Duration;

use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{ExecutionStart, Offsets, ReadOutput, StdinMode};
use agentbox_testing::repeat_until_below;
use futures::future::join_all;
use tonic::Code;

use super::calls::{Call, command, follow, get, kept, run, script, started};
use crate::support::{TestBox, eventually};

const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_get_the_same_bytes() {
    let (boxd, client) = TestBox::idle().await;
    let data: Vec<u8> = (0..=255).cycle().take(600_000).collect();
    std::fs::write(boxd.path("data"), &data).unwrap();
    let wanted = ExecutionStart {
        stdin: StdinMode::Open.into(),
        ..script("read x; cat data; cat data >&2; exit 3")
    };
    let id = started(&client, wanted).await;
    let mut followers = Vec::new();
    for _ in 0..20 {
        followers.push(follow(&client, &id, None).await);
    }
    super::stdin::write(&client, &id, b"go\n", false)
        .await
        .unwrap();
    for finished in join_all(followers.into_iter().map(Call::finish)).await {
        assert!(finished.data == [data.clone(), data.clone()]);
        assert_eq!(finished.gaps, [0, 0]);
        assert_eq!(finished.execution.unwrap().exit_code, Some(3));
    }
    // A later reader begins where it wants to.
    let from = Offsets {
        stdout: 599_990,
        stderr: 600_000,
    };
    let mut late = follow(&client, &id, Some(from)).await;
    let Some(Output::Output(piece)) = late.next().await.unwrap() else {
        panic!("no output")
    };
    assert_eq!((piece.offset, &piece.data[..]), (599_990, &data[599_990..]));
    assert_eq!(late.record().await.unwrap().stdout_bytes, 600_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_executions_and_their_followers_are_independent() {
    let (_boxd, client) = TestBox::idle().await;
    let client = &client;
    let runs = (0..50).map(|number: i32| async move {
        let wanted = script(&format!("seq {number} 20000; exit {number}"));
        let id = started(client, wanted).await;
        let finished = follow(client, &id, None).await.finish().await;
        let expected: String = (number..=20_000).map(|n| format!("{n}\n")).collect();
        assert!(finished.text() == expected, "{number}");
        assert_eq!(finished.execution.unwrap().exit_code, Some(number));
    });
    join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_and_gaps_of_a_slow_reader_are_the_count() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        keep_bytes: 64 * 1024,
        ..command(&["head", "-c", "30000000", "/dev/zero"])
    };
    let id = started(&client, wanted).await;
    let mut slow = follow(&client, &id, Some(Offsets::default())).await;
    let first = slow.next().await.unwrap();
    let (mut sum, mut gaps) = match first {
        Some(Output::Output(piece)) => (piece.data.len() as u64, 0),
        // The command had written more than is kept before the reader began.
        Some(Output::Gap(gap)) => (gap.bytes, 1),
        other => panic!("{other:?}"),
    };
    // The command does not wait for the reader.
    let ended = get(&client, &id, 20_000).await.unwrap();
    assert_eq!((ended.exit_code, ended.stdout_bytes), (Some(0), 30_000_000));
    loop {
        match slow.next().await.unwrap() {
            Some(Output::Output(piece)) => {
                assert_eq!(piece.offset, sum);
                sum += piece.data.len() as u64;
            }
            Some(Output::Gap(gap)) => {
                assert_eq!(gap.offset, sum);
                sum += gap.bytes;
                gaps += 1;
            }
            Some(Output::Execution(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sum, 30_000_000);
    assert!(gaps > 0);
}

#[tokio::test]
async fn only_the_newest_keep_bytes_are_kept() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        keep_bytes: 100,
        ..command(&["seq", "1", "20000"])
    };
    let ended = run(&client, wanted).await;
    let finished = kept(&client, &ended.id).await;
    assert_eq!(finished.data[0].len(), 100);
    assert!(finished.text().ends_with("19999\n20000\n"));
    assert_eq!(finished.gaps[0] + 100, ended.stdout_bytes);
}

#[tokio::test]
async fn read_without_follow_ends_at_what_is_there() {
    let (_boxd, client) = TestBox::idle().await;
    let endless = started(&client, command(&["yes"])).await;
    let finished = kept(&client, &endless).await;
    assert!(finished.data[0].len() <= 2 * MIB);
    assert!(finished.execution.unwrap().exit_code.is_none());
    let ended = run(&client, script("printf out; printf error >&2")).await;
    let only = |stdout, from| ReadOutput {
        id: ended.id.clone(),
        stdout,
        stderr: !stdout,
        from,
        follow: false,
    };
    for (stdout, expected) in [(true, ["out", ""]), (false, ["", "error"])] {
        let read = Operation::Output(only(stdout, None));
        let finished = Call::open(&client, read).await.unwrap().finish().await;
        let expected = expected.map(|text| text.as_bytes().to_vec());
        assert_eq!(finished.data, expected);
    }
    let beyond = Offsets {
        stdout: 4,
        stderr: 0,
    };
    let read = Operation::Output(only(true, Some(beyond)));
    let error = Call::open(&client, read).await.err().unwrap();
    assert_eq!(error.code(), Code::OutOfRange);
    assert!(error.message().contains("must be at most 3"), "{error:?}");
}

#[tokio::test]
async fn later_output_of_background_processes_is_not_output_of_the_execution() {
    let (boxd, client) = TestBox::idle().await;
    let mut ended = None;
    repeat_until_below(Duration::from_millis(900), async || {
        let wanted = "(until [ -e go ]; do sleep 0.05; done; echo late; echo > said) & echo now";
        let execution = run(&client, script(wanted)).await;
        assert_eq!(execution.exit_code, Some(0));
        let took = Duration::from_millis(execution.duration_ms.unwrap());
        ended = Some(execution);
        took
    })
    .await;
    std::fs::write(boxd.path("go"), "").unwrap();
    eventually("it prints", async || boxd.path("said").exists()).await;
    // Bytes of the pipe are taken sooner than those of a later command.
    run(&client, command(&["sleep", "0.3"])).await;
    assert_eq!(kept(&client, &ended.unwrap().id).await.text(), "now\n");
}
