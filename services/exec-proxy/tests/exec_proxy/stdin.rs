//! Stdin of commands.

use crate::support::gateway::{command, shell};
use crate::support::{System, TestBox, pattern};

#[tokio::test(flavor = "multi_thread")]
async fn inline_stdin_arrives_exactly() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    for size in [0, 1, 100_000] {
        let mut request = command(&["cat"]);
        request.stdin = Some(pattern(size));
        let answer = system.gateway.exec(&inside, request).await.unwrap();
        assert!(answer.stdout == pattern(size), "{size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_stdin_arrives_exactly_while_output_flows() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let bytes = pattern(5 * 1024 * 1024);
    let answer = system
        .gateway
        .exec_with(&inside, command(&["cat"]), &bytes)
        .await
        .unwrap();
    assert!(answer.stdout == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn command_without_stdin_reads_eof_at_once() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let answer = system
        .gateway
        .exec(&inside, command(&["cat"]))
        .await
        .unwrap();
    assert_eq!((answer.exit.exit_code, answer.stdout.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_ignores_stdin_returns_result() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let bytes = pattern(3 * 1024 * 1024);
    let answer = system
        .gateway
        .exec_with(&inside, shell("echo enough; exit 4"), &bytes)
        .await
        .unwrap();
    assert_eq!(
        (answer.exit.exit_code, answer.stdout.as_slice()),
        (4, &b"enough\n"[..])
    );
}
