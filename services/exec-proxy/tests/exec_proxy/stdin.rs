//! What a command reads.

use crate::support::gateway::{command, shell};
use crate::support::{TestBox, World, pattern};

#[tokio::test(flavor = "multi_thread")]
async fn stdin_inside_the_request_arrives_exactly() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    for size in [0, 1, 100_000] {
        let mut request = command(&["cat"]);
        request.stdin = Some(pattern(size));
        let answer = world.gateway.exec(&inside, request).await.unwrap();
        assert!(answer.stdout == pattern(size), "{size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_of_many_messages_arrives_exactly_while_the_output_flows_back() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let bytes = pattern(5 * 1024 * 1024);
    let answer = world
        .gateway
        .exec_with(&inside, command(&["cat"]), &bytes)
        .await
        .unwrap();
    assert!(answer.stdout == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_stdin_a_command_reads_the_end_at_once() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let answer = world
        .gateway
        .exec(&inside, command(&["cat"]))
        .await
        .unwrap();
    assert_eq!((answer.exit.exit_code, answer.stdout.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_without_reading_its_stdin_answers_all_the_same() {
    let world = World::start().await;
    let inside = TestBox::idle().await;
    let bytes = pattern(3 * 1024 * 1024);
    let answer = world
        .gateway
        .exec_with(&inside, shell("echo enough; exit 4"), &bytes)
        .await
        .unwrap();
    assert_eq!(
        (answer.exit.exit_code, answer.stdout.as_slice()),
        (4, &b"enough\n"[..])
    );
}
