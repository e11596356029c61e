//! The bounds of executions, and the end of their box.

use agentbox_box_protocol::client::BoxClient;
use agentbox_box_protocol::variables;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    ExecutionStart, ExecutionStatus, GetExecution, Offsets, OnFull,
};
use nix::sys::signal::Signal;
use tonic::Code;

use super::calls::{Call, command, delete, follow, get, kept, list, run, start, started, status};
use crate::support::{self, Session, Setup, TestBox, is_alive};

async fn bounded(variable: &str, value: &str) -> (TestBox, BoxClient) {
    TestBox::start(Setup {
        variables: vec![(variable.to_owned(), value.to_owned())],
        ..Setup::default()
    })
    .await
}

#[tokio::test]
async fn executions_and_runs_share_the_bound_of_running_commands() {
    let (_boxd, client) = bounded(variables::MAX_RUNNING, "2").await;
    let first = started(&client, command(&["sleep", "1000"])).await;
    let mut session = Session::start(&client, support::start(&["sleep", "1000"])).await;
    session.next().await.unwrap();
    let error = start(&client, command(&["true"])).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("runs 2 commands"), "{error:?}");
    delete(&client, &first, false).await.unwrap();
    assert_eq!(run(&client, command(&["true"])).await.exit_code, Some(0));
    let failed = run(&client, command(&["no-such-program"])).await;
    assert_eq!(status(&failed), ExecutionStatus::FailedToStart);
    started(&client, command(&["sleep", "1000"])).await;
}

#[tokio::test]
async fn oldest_ended_executions_are_forgotten_beyond_the_bound() {
    let (_boxd, client) = bounded(variables::MAX_EXECUTIONS, "3").await;
    let running = started(&client, command(&["sleep", "1000"])).await;
    let mut ids = vec![running.clone()];
    for _ in 0..5 {
        ids.push(run(&client, command(&["true"])).await.id);
    }
    let listed: Vec<String> = list(&client).await.into_iter().map(|e| e.id).collect();
    assert_eq!(listed, [&ids[5], &ids[4], &running].map(String::clone));
    let error = get(&client, &ids[1], 0).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn output_of_the_execution_that_ended_first_is_dropped_beyond_the_total() {
    let (_boxd, client) = bounded(variables::EXECUTIONS_OUTPUT_BYTES, "1000000").await;
    let mut ended = Vec::new();
    for _ in 0..3 {
        ended.push(
            run(&client, command(&["head", "-c", "400000", "/dev/zero"]))
                .await
                .id,
        );
    }
    let dropped = kept(&client, &ended[0]).await;
    assert_eq!((dropped.data[0].len(), dropped.gaps[0]), (0, 400_000));
    for id in &ended[1..] {
        let finished = kept(&client, id).await;
        assert_eq!((finished.data[0].len(), finished.gaps[0]), (400_000, 0));
    }
}

#[tokio::test]
async fn follower_of_an_ended_execution_with_block_gets_every_byte_at_the_total() {
    let (_boxd, client) = bounded(variables::EXECUTIONS_OUTPUT_BYTES, "1000000").await;
    let print = || command(&["head", "-c", "400000", "/dev/zero"]);
    let blocking = ExecutionStart {
        on_full: OnFull::Block.into(),
        ..print()
    };
    let id = started(&client, blocking).await;
    let follower = follow(&client, &id, Some(Offsets::default())).await;
    let ended = get(&client, &id, 20_000).await.unwrap();
    assert_eq!(status(&ended), ExecutionStatus::Exited);
    let others = [run(&client, print()).await, run(&client, print()).await];
    let finished = follower.finish().await;
    assert_eq!((finished.data[0].len(), finished.gaps[0]), (400_000, 0));
    assert_eq!(kept(&client, &others[1].id).await.data[0].len(), 400_000);
    // Without a follower it is dropped like every other.
    for _ in 0..3 {
        run(&client, print()).await;
    }
    let dropped = kept(&client, &id).await;
    assert_eq!((dropped.data[0].len(), dropped.gaps[0]), (0, 400_000));
}

#[tokio::test]
async fn too_large_request_is_refused_with_its_field() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        keep_bytes: 17 * 1024 * 1024,
        ..command(&["true"])
    };
    let error = start(&client, wanted).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error
            .message()
            .starts_with("keep_bytes: must be at most 16777216")
    );
    let wanted = ExecutionStart {
        id: "../x".into(),
        ..command(&["true"])
    };
    let error = start(&client, wanted).await.unwrap_err();
    assert!(error.message().starts_with("id: "), "{error:?}");
    assert!(list(&client).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executions_die_with_their_box_and_have_no_outcome() {
    let (mut boxd, client) = TestBox::idle().await;
    let running = start(&client, command(&["sleep", "1000"])).await.unwrap();
    let mut follower = follow(&client, &running.id, None).await;
    let wait = GetExecution {
        id: running.id.clone(),
        wait_ms: 20_000,
    };
    let mut waiting = Call::open(&client, Operation::Get(wait)).await.unwrap();
    boxd.signal(Signal::SIGTERM);
    assert_eq!(follower.next().await.unwrap_err().code(), Code::Unavailable);
    let error = waiting.record().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(boxd.exit_code().await, Some(0));
    assert!(!is_alive(i32::try_from(running.pid.unwrap()).unwrap()));
    let journal = agentbox_box_protocol::executions::read(&boxd.output_dir());
    assert_eq!(status(&journal[0]), ExecutionStatus::Running);
}
