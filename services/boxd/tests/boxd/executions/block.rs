//! Executions whose command waits for its readers.

use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::{ExecutionStart, ExecutionStatus, Offsets, OnFull, StdinMode};

use super::calls::{command, delete, follow, get, kept, started, status};
use crate::support::{TestBox, eventually};

const MIB: usize = 1024 * 1024;

fn block(command: ExecutionStart) -> ExecutionStart {
    ExecutionStart {
        on_full: OnFull::Block.into(),
        keep_bytes: 256 * 1024,
        ..command
    }
}

fn expected(count: u32) -> Vec<u8> {
    (1..=count)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_that_is_lost_several_times_gets_every_byte_once() {
    let (boxd, client) = TestBox::idle().await;
    let id = started(&client, block(command(&["seq", "1", "3000000"]))).await;
    let expected = expected(3_000_000);
    let mut received: Vec<u8> = Vec::new();
    for round in 1..=8 {
        let (cut, relay) = boxd.abortable_client().await;
        let from = Offsets {
            stdout: received.len() as u64,
            stderr: 0,
        };
        let mut follower = follow(&cut, &id, Some(from)).await;
        while received.len() < round * 2 * MIB {
            match follower.next().await.unwrap() {
                Some(Output::Output(piece)) => {
                    assert_eq!(piece.offset, received.len() as u64);
                    received.extend_from_slice(&piece.data);
                }
                other => panic!("{other:?}"),
            }
        }
        // What is on its way is lost with the connection.
        relay.abort();
    }
    let from = Offsets {
        stdout: received.len() as u64,
        stderr: 0,
    };
    let mut rest = follow(&client, &id, Some(from)).await;
    loop {
        match rest.next().await.unwrap() {
            Some(Output::Output(piece)) => {
                assert_eq!(piece.offset, received.len() as u64);
                received.extend_from_slice(&piece.data);
            }
            Some(Output::Execution(ended)) => {
                assert_eq!(ended.exit_code, Some(0));
                assert_eq!(ended.stdout_bytes, received.len() as u64);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(received == expected, "{} bytes", received.len());
}

#[tokio::test]
async fn command_waits_without_a_follower_and_can_be_deleted() {
    let (boxd, client) = TestBox::idle().await;
    let before = boxd.resident_kib();
    let id = started(
        &client,
        block(command(&["head", "-c", "50000000", "/dev/zero"])),
    )
    .await;
    let taken = async || get(&client, &id, 0).await.unwrap().stdout_bytes;
    eventually("the kept output is full", async || {
        taken().await == 256 * 1024
    })
    .await;
    // A reader that does not follow is not waited for, and lets nothing go on.
    assert_eq!(kept(&client, &id).await.data[0].len(), 256 * 1024);
    let still = get(&client, &id, 500).await.unwrap();
    assert_eq!(status(&still), ExecutionStatus::Running);
    assert_eq!(still.stdout_bytes, 256 * 1024);
    let grown = boxd.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB");
    let deleted = delete(&client, &id, false).await.unwrap();
    assert_eq!(status(&deleted), ExecutionStatus::Signalled);
}

#[tokio::test]
async fn command_ends_without_a_reader_of_its_last_output() {
    let (_boxd, client) = TestBox::idle().await;
    // More than is kept, as far as the pipe holds the rest.
    let id = started(
        &client,
        block(command(&["head", "-c", "300000", "/dev/zero"])),
    )
    .await;
    let ended = get(&client, &id, 20_000).await.unwrap();
    assert_eq!((ended.exit_code, ended.stdout_bytes), (Some(0), 300_000));
    let finished = follow(&client, &id, None).await.finish().await;
    assert_eq!((finished.data[0].len(), finished.gaps), (300_000, [0, 0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slowest_follower_is_waited_for_until_it_leaves() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        stdin: StdinMode::Open.into(),
        ..block(super::calls::script("read x; head -c 20000000 /dev/zero"))
    };
    let id = started(&client, wanted).await;
    let stalled = follow(&client, &id, None).await;
    let fast = follow(&client, &id, None).await;
    super::stdin::write(&client, &id, b"go\n", false)
        .await
        .unwrap();
    let fast = tokio::spawn(fast.finish());
    let taken = async || get(&client, &id, 0).await.unwrap().stdout_bytes;
    eventually("output arrives", async || taken().await >= 256 * 1024).await;
    let waiting = get(&client, &id, 500).await.unwrap();
    assert_eq!(status(&waiting), ExecutionStatus::Running);
    assert!(waiting.stdout_bytes < 4 * MIB as u64, "{waiting:?}");
    drop(stalled);
    let finished = fast.await.unwrap();
    assert_eq!(
        (finished.data[0].len(), finished.gaps),
        (20_000_000, [0, 0])
    );
}
