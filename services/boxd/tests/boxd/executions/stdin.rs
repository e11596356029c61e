//! Stdin of executions.

use agentbox_box_protocol::client::BoxClient;
use agentbox_contracts::executions::execution_input::Input;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    Execution, ExecutionInput, ExecutionStart, ExecutionStatus, OnFull, StdinMode, WriteStdin,
};
use bytes::Bytes;
use tonic::{Code, Status};

use super::calls::{Call, command, delete, follow, get, run, script, started, status};
use crate::support::TestBox;

const CHUNK: usize = 32 * 1024;

pub async fn open(client: &BoxClient, id: &str, close: bool) -> Result<Call, Status> {
    let id = id.to_owned();
    Call::open(client, Operation::Stdin(WriteStdin { id, close })).await
}

pub async fn write(
    client: &BoxClient,
    id: &str,
    data: &[u8],
    close: bool,
) -> Result<Execution, Status> {
    let mut call = open(client, id, close).await?;
    for chunk in data.chunks(CHUNK) {
        call.send(Input::Data(Bytes::copy_from_slice(chunk))).await;
    }
    call.send(Input::End(())).await;
    call.record().await
}

fn with_stdin(wanted: ExecutionStart) -> ExecutionStart {
    ExecutionStart {
        stdin: StdinMode::Open.into(),
        ..wanted
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streamed_stdin_round_trips_through_cat() {
    let (_boxd, client) = TestBox::idle().await;
    let wanted = ExecutionStart {
        on_full: OnFull::Block.into(),
        ..with_stdin(command(&["cat"]))
    };
    let id = started(&client, wanted).await;
    let follower = tokio::spawn(follow(&client, &id, None).await.finish());
    let data: Vec<u8> = (0..3_000_000).map(|at| (at * 31 % 251) as u8).collect();
    let (first, second) = data.split_at(1_000_000);
    let open = write(&client, &id, first, false).await.unwrap();
    assert_eq!(status(&open), ExecutionStatus::Running);
    write(&client, &id, second, true).await.unwrap();
    let finished = follower.await.unwrap();
    assert!(finished.data[0] == data, "{} bytes", finished.data[0].len());
    assert_eq!(finished.execution.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn write_without_an_open_stdin_is_refused_with_the_reason() {
    let (_boxd, client) = TestBox::idle().await;
    let closed = started(&client, command(&["sleep", "1000"])).await;
    let ended = run(&client, with_stdin(command(&["true"]))).await.id;
    for (id, code, reason) in [
        (closed.as_str(), Code::FailedPrecondition, "no open stdin"),
        (ended.as_str(), Code::FailedPrecondition, "has ended"),
        ("exec-unknown", Code::NotFound, "does not exist"),
    ] {
        let error = write(&client, id, b"x", false).await.unwrap_err();
        assert_eq!(error.code(), code, "{id}");
        assert!(error.message().contains(reason), "{error:?}");
    }
    let id = started(&client, with_stdin(command(&["sleep", "1000"]))).await;
    write(&client, &id, b"", true).await.unwrap();
    let error = write(&client, &id, b"x", true).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("no open stdin"), "{error:?}");
}

#[tokio::test]
async fn input_that_ends_after_the_command_has_read_it_and_ended_is_written() {
    let (_boxd, client) = TestBox::idle().await;
    for close in [false, true] {
        let id = started(&client, with_stdin(script("read line; echo got $line"))).await;
        let follower = follow(&client, &id, None).await;
        let mut call = open(&client, &id, close).await.unwrap();
        call.send(Input::Data("one\n".into())).await;
        assert_eq!(follower.finish().await.text(), "got one\n");
        call.send(Input::End(())).await;
        assert_eq!(call.record().await.unwrap().exit_code, Some(0), "{close}");
    }
}

#[tokio::test]
async fn unread_stdin_is_held_back_until_the_command_ends() {
    let (boxd, client) = TestBox::idle().await;
    let id = started(&client, with_stdin(command(&["sleep", "1000"]))).await;
    let before = boxd.resident_kib();
    let mut call = open(&client, &id, false).await.unwrap();
    let inputs = call.inputs.clone();
    let chunk = Bytes::from(vec![0; CHUNK]);
    let input = move || ExecutionInput {
        input: Some(Input::Data(chunk.clone())),
    };
    let mut sent = 0;
    let full = std::time::Duration::from_secs(1);
    while let Ok(Ok(())) = tokio::time::timeout(full, inputs.send(input())).await {
        sent += CHUNK;
        assert!(sent < 16 * 1024 * 1024, "{sent} bytes were taken");
    }
    let grown = boxd.resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB");
    // Other calls, and the end, do not wait for it.
    assert_eq!(get(&client, &id, 0).await.unwrap().signal, None);
    delete(&client, &id, false).await.unwrap();
    let error = call.record().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn lost_writer_does_not_end_stdin() {
    let (boxd, client) = TestBox::idle().await;
    let wanted = script("read a; echo got $a; read b; echo then $b");
    let id = started(&client, with_stdin(wanted)).await;
    let (cut, relay) = boxd.abortable_client().await;
    let call = open(&cut, &id, true).await.unwrap();
    call.send(Input::Data("one\n".into())).await;
    let mut follower = follow(&client, &id, None).await;
    follower.until("got one").await;
    relay.abort();
    write(&client, &id, b"two\n", false).await.unwrap();
    follower.until("then two").await;
}
