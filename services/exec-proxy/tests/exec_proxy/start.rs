//! The message that reports the start of a streamed command.

use std::time::Duration;

use agentbox_box_protocol::proto::{Exited, RunInput, RunOutput, Started, run_output};
use agentbox_contracts::exec::{Exit, FromBox, OpenKind, ToBox};
use run_output::Output;
use tonic::Streaming;

use crate::support::fake_box::{Behaviour, FakeBox, Outputs};
use crate::support::gateway::{command, receive, result, shell};
use crate::support::{System, TestBox};

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn start_of_a_streamed_command_is_reported_before_it_prints_or_ends() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let mut request = shell("read line; exit 3");
    request.stream = true;
    request.stdin_follows = true;
    let kind = OpenKind::Exec(request);
    let mut session = system.gateway.open(&inside, kind).await.unwrap();
    // The command waits for its stdin, and prints nothing.
    let started = receive(&mut session, DEADLINE).await;
    assert_eq!(started, Some(FromBox::CommandStarted));
    session.send(ToBox::End).await.unwrap();
    match receive(&mut session, DEADLINE).await {
        Some(FromBox::Exit(exit)) => assert_eq!(exit.exit_code, 3),
        other => panic!("{other:?}"),
    }
}

/// Reports the start of each command twice, as boxd does when a lost connection is resumed.
struct StartedTwice;

#[async_trait::async_trait]
impl Behaviour for StartedTwice {
    async fn run(&self, mut inputs: Streaming<RunInput>, outputs: Outputs<RunOutput>) {
        inputs.message().await.unwrap();
        for output in [
            Output::Started(Started::default()),
            Output::Started(Started::default()),
            Output::Stdout("out".into()),
            Output::Exited(Exited::default()),
        ] {
            let output = RunOutput {
                output: Some(output),
                ..RunOutput::default()
            };
            outputs.send(Ok(output)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn start_is_reported_once_and_only_of_a_streamed_command() {
    let system = System::start().await;
    let inside = FakeBox::start(StartedTwice).await;
    let open = |stream| {
        let mut request = command(&["true"]);
        request.stream = stream;
        inside.open(OpenKind::Exec(request))
    };
    let mut session = system.gateway.open_as(&open(true)).await.unwrap();
    for expected in [
        FromBox::CommandStarted,
        FromBox::Stdout("out".into()),
        FromBox::Exit(Exit::default()),
    ] {
        let message = receive(&mut session, DEADLINE).await;
        assert_eq!(message, Some(expected));
    }
    assert_eq!(receive(&mut session, DEADLINE).await, None);
    // `result` fails on a message that is not a part of the result.
    let session = system.gateway.open_as(&open(false)).await.unwrap();
    assert_eq!(result(session).await.unwrap().stdout, b"out");
}
