//! Execution sessions, with boxes whose boxd is the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agentbox_contracts::environment::{
    EventExecution, EventExecutionStatus, Status as EnvironmentStatus,
};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::rpc::GetExecutions;
use agentbox_contracts::exec::{
    ExecutionsRequest, FromBox, MAX_CHUNK, Open, OpenKind, TerminalSize, ToBox,
};
use agentbox_contracts::executions::{
    AttachExecution, Attached, ControlExecution, Execution, ExecutionInput, ExecutionList,
    ExecutionOutput, ExecutionRequest, ExecutionStart, ExecutionStatus, GetExecution, OutputPiece,
    ReadOutput, WriteStdin, control_execution, execution_input, execution_output,
    execution_request,
};
use agentbox_testing::eventually_some;
use bytes::Bytes;
use execution_output::Output;
use execution_request::Operation;
use tonic::{Code, Status, Streaming};

use crate::support::fake_box::{Behaviour, FakeBox, Outputs};
use crate::support::gateway::receive;
use crate::support::relay::Relay;
use crate::support::{System, eventually, pattern};

const DEADLINE: Duration = Duration::from_secs(20);
const ID: &str = "exec-0123456789abcdef";

/// Answers operations. The output of its execution is `content`, on stdout.
#[derive(Clone, Default)]
struct Executions {
    content: Bytes,
    /// The number of calls.
    calls: Arc<AtomicUsize>,
    /// Whether a call that reads no input was cancelled.
    cancelled: Arc<AtomicBool>,
}

fn output(output: Output) -> ExecutionOutput {
    ExecutionOutput {
        output: Some(output),
    }
}

fn record(name: impl Into<String>) -> Output {
    Output::Execution(Execution {
        id: ID.into(),
        name: name.into(),
        ..Execution::default()
    })
}

/// An exited execution, and two that have no event.
fn list() -> Output {
    let with = |id: &str, status: ExecutionStatus| Execution {
        id: id.into(),
        status: status.into(),
        ..Execution::default()
    };
    let exited = Execution {
        exit_code: Some(3),
        ..with(ID, ExecutionStatus::Exited)
    };
    let starting = with("exec-1123456789abcdef", ExecutionStatus::Starting);
    let forged = with("not an id", ExecutionStatus::Exited);
    Output::Executions(ExecutionList {
        executions: vec![starting, forged, exited],
        is_last: true,
    })
}

fn piece(offset: usize, data: Bytes) -> Output {
    Output::Output(OutputPiece {
        stderr: false,
        offset: offset as u64,
        data,
    })
}

impl Executions {
    async fn send_output(&self, read: ReadOutput, outputs: Outputs<ExecutionOutput>) {
        let from = read.from.map_or(0, |from| from.stdout);
        let mut offset = usize::try_from(from).unwrap();
        while offset < self.content.len() {
            let end = self.content.len().min(offset + MAX_CHUNK);
            let data = self.content.slice(offset..end);
            if outputs.send(Ok(output(piece(offset, data)))).await.is_err() {
                return;
            }
            offset = end;
        }
        let _ = outputs.send(Ok(output(record("ended")))).await;
    }

    /// Describes the next input; `None` at the end.
    async fn describe(inputs: &mut Streaming<ExecutionInput>) -> Option<String> {
        Some(match inputs.message().await.ok()??.input? {
            execution_input::Input::End(()) => return None,
            execution_input::Input::Data(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            execution_input::Input::Resize(size) => format!("{}x{}", size.cols, size.rows),
            execution_input::Input::Signal(name) => name,
            execution_input::Input::TakeInput(()) => "take".into(),
            execution_input::Input::Request(_) => "request".into(),
        })
    }

    /// Describes all inputs in the name of the last output.
    async fn repeat(mut inputs: Streaming<ExecutionInput>, outputs: Outputs<ExecutionOutput>) {
        let mut all = Vec::new();
        while let Some(text) = Self::describe(&mut inputs).await {
            all.push(text);
        }
        let _ = outputs.send(Ok(output(record(all.join(" "))))).await;
    }

    /// Describes each input in an output, until the end.
    async fn echo(mut inputs: Streaming<ExecutionInput>, outputs: Outputs<ExecutionOutput>) {
        let mut offset = 0;
        while let Some(text) = Self::describe(&mut inputs).await {
            let data = Bytes::from(text);
            let length = data.len();
            let _ = outputs.send(Ok(output(piece(offset, data)))).await;
            offset += length;
        }
        let _ = outputs.send(Ok(output(record("ended")))).await;
    }
}

#[async_trait::async_trait]
impl Behaviour for Executions {
    async fn executions(
        &self,
        mut inputs: Streaming<ExecutionInput>,
        outputs: Outputs<ExecutionOutput>,
    ) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let operation = match inputs.message().await {
            Ok(Some(ExecutionInput {
                input: Some(execution_input::Input::Request(request)),
            })) => request.operation,
            other => panic!("not a request: {other:?}"),
        };
        let answer = match operation {
            Some(Operation::Start(start)) => {
                let bytes: usize = start.env.values().map(String::len).sum();
                Ok(record(format!("{bytes}")))
            }
            Some(Operation::List(())) => Ok(list()),
            Some(Operation::Output(read)) => return self.send_output(read, outputs).await,
            Some(Operation::Attach(_)) => {
                let attached = Attached {
                    has_input: true,
                    ..Attached::default()
                };
                let _ = outputs.send(Ok(output(Output::Attached(attached)))).await;
                return Self::echo(inputs, outputs).await;
            }
            Some(Operation::Stdin(stdin)) if stdin.id == "unread" => {
                outputs.closed().await;
                self.cancelled.store(true, Ordering::SeqCst);
                return;
            }
            Some(Operation::Stdin(_)) => return Self::repeat(inputs, outputs).await,
            Some(Operation::Get(get)) => match get.id.as_str() {
                "unknown" => Err(Status::not_found("the message")),
                "ended" => Err(Status::failed_precondition("the message")),
                "busy" => Err(Status::resource_exhausted("the message")),
                "stopping" => Err(Status::unavailable("the message")),
                "foreign" => Ok(piece(0, Bytes::from_static(b"x"))),
                // Its result never comes.
                _ => {
                    outputs.closed().await;
                    return;
                }
            },
            _ => Err(Status::new(Code::Unavailable, "the message")),
        };
        let _ = outputs.send(answer.map(output)).await;
    }
}

fn execution(operation: Operation) -> OpenKind {
    OpenKind::Execution(ExecutionRequest {
        operation: Some(operation),
    })
}

fn get(id: &str) -> OpenKind {
    execution(Operation::Get(GetExecution {
        id: id.into(),
        wait_ms: 60_000,
    }))
}

fn follow() -> OpenKind {
    execution(Operation::Output(ReadOutput {
        id: ID.into(),
        stdout: true,
        stderr: true,
        from: None,
        follow: true,
    }))
}

fn sent(of: Output) -> FromBox {
    FromBox::Execution(output(of))
}

#[tokio::test(flavor = "multi_thread")]
async fn start_with_4_mib_of_environment_is_answered_with_the_execution() {
    let system = System::start().await;
    let inside = FakeBox::start(Executions::default()).await;
    let values = (0..4).map(|n| (format!("A{n}"), "x".repeat(1024 * 1024)));
    let start = ExecutionStart {
        id: ID.into(),
        command: vec!["true".into()],
        env: values.collect(),
        ..ExecutionStart::default()
    };
    let open = inside.open(execution(Operation::Start(start)));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let expected = sent(record((4 * 1024 * 1024).to_string()));
    assert_eq!(receive(&mut session, DEADLINE).await, Some(expected));
    assert_eq!(receive(&mut session, DEADLINE).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_of_an_attached_client_are_relayed_in_order() {
    let system = System::start().await;
    let inside = FakeBox::start(Executions::default()).await;
    for (operation, is_attach) in [
        (Operation::Attach(AttachExecution::default()), true),
        (Operation::Stdin(WriteStdin::default()), false),
    ] {
        let open = inside.open(execution(operation));
        let mut session = system.gateway.open_as(&open).await.unwrap();
        for message in [
            ToBox::Data(Bytes::from_static(b"data")),
            ToBox::Resize(TerminalSize { cols: 80, rows: 24 }),
            ToBox::Signal("SIGINT".into()),
            ToBox::TakeInput,
            ToBox::End,
        ] {
            session.send(message).await.unwrap();
        }
        if !is_attach {
            let all = sent(record("data 80x24 SIGINT take"));
            assert_eq!(receive(&mut session, DEADLINE).await, Some(all));
            assert_eq!(receive(&mut session, DEADLINE).await, None);
            continue;
        }
        let attached = Attached {
            has_input: true,
            ..Attached::default()
        };
        let expected = sent(Output::Attached(attached));
        assert_eq!(receive(&mut session, DEADLINE).await, Some(expected));
        let mut offset = 0;
        for text in ["data", "80x24", "SIGINT", "take"] {
            let expected = sent(piece(offset, Bytes::from_static(text.as_bytes())));
            assert_eq!(receive(&mut session, DEADLINE).await, Some(expected));
            offset += text.len();
        }
        assert_eq!(
            receive(&mut session, DEADLINE).await,
            Some(sent(record("ended")))
        );
        assert_eq!(receive(&mut session, DEADLINE).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_followed_output_arrives_once_across_lost_connections() {
    let system = System::start().await;
    let executions = Executions {
        content: pattern(8 * 1024 * 1024).into(),
        ..Executions::default()
    };
    let inside = FakeBox::start(executions.clone()).await;
    let relay = Relay::to(inside.address).await;
    let open = inside.open_at(relay.address, follow());
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let reading = async {
        let mut content = Vec::new();
        loop {
            match receive(&mut session, DEADLINE).await {
                Some(FromBox::Execution(ExecutionOutput {
                    output: Some(Output::Output(piece)),
                })) => {
                    assert_eq!(piece.offset, content.len() as u64);
                    content.extend_from_slice(&piece.data);
                }
                Some(FromBox::Execution(ExecutionOutput {
                    output: Some(Output::Execution(execution)),
                })) => {
                    assert_eq!(execution.name, "ended");
                    return content;
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let cutting = async {
        for mebibytes in [1, 3, 6] {
            eventually("output flows", DEADLINE, async || {
                relay.bytes_from_box() > mebibytes * 1024 * 1024
            })
            .await;
            relay.disconnect();
        }
    };
    let (content, ()) = tokio::join!(reading, cutting);
    assert!(content == executions.content, "{} bytes", content.len());
    assert!(executions.calls.load(Ordering::SeqCst) > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn operation_that_takes_input_is_not_continued() {
    let system = System::start().await;
    let executions = Executions::default();
    let inside = FakeBox::start(executions.clone()).await;
    let relay = Relay::to(inside.address).await;
    let attach = execution(Operation::Attach(AttachExecution::default()));
    let open = inside.open_at(relay.address, attach);
    let mut session = system.gateway.open_as(&open).await.unwrap();
    assert!(receive(&mut session, DEADLINE).await.is_some());
    relay.disconnect();
    let error = session.recv().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::BoxLost, "{error}");
    assert_eq!(executions.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_session_cancels_an_operation_whose_input_the_box_does_not_read() {
    let system = System::start().await;
    let executions = Executions::default();
    let inside = FakeBox::start(executions.clone()).await;
    let stdin = WriteStdin {
        id: "unread".into(),
        ..WriteStdin::default()
    };
    let open = inside.open(execution(Operation::Stdin(stdin)));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let mut sent = 0;
    // Until every window is full.
    loop {
        let data = ToBox::Data(Bytes::from(vec![7; MAX_CHUNK]));
        match tokio::time::timeout(Duration::from_secs(1), session.send(data)).await {
            Ok(accepted) => accepted.unwrap(),
            Err(_) => break,
        }
        sent += 1;
        assert!(sent < 128, "the sender is not stopped");
    }
    assert!(!executions.cancelled.load(Ordering::SeqCst));
    drop(session);
    eventually("the call is cancelled", DEADLINE, async || {
        executions.cancelled.load(Ordering::SeqCst)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_box_have_their_codes() {
    let system = System::start().await;
    let inside = FakeBox::start(Executions::default()).await;
    for (id, code, message) in [
        ("unknown", ErrorCode::NotFound, "execution not found"),
        ("ended", ErrorCode::Conflict, "the message"),
        ("busy", ErrorCode::RateLimited, "the message"),
        // It is asked again for two seconds.
        ("stopping", ErrorCode::BoxLost, "lost"),
        ("foreign", ErrorCode::BoxLost, "invalid message"),
    ] {
        let mut session = system.gateway.open_as(&inside.open(get(id))).await.unwrap();
        let error = session.recv().await.unwrap_err();
        assert_eq!(error.code, code, "{id}: {error}");
        assert!(error.message.contains(message), "{id}: {error}");
        let retry_after = (code == ErrorCode::RateLimited).then_some(1);
        assert_eq!(error.retry_after_s, retry_after, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signal_is_sent_once_although_the_box_is_lost() {
    let system = System::start().await;
    let executions = Executions::default();
    let inside = FakeBox::start(executions.clone()).await;
    let control = Operation::Control(ControlExecution {
        id: ID.into(),
        control: Some(control_execution::Control::Signal("INT".into())),
    });
    let open = inside.open(execution(control));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let error = session.recv().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::BoxLost, "{error}");
    assert_eq!(executions.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_a_waiting_operation_with_an_error() {
    let system = System::start().await;
    let executions = Executions::default();
    let inside = FakeBox::start(executions.clone()).await;
    let open = inside.open(get(ID));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    eventually("the box is asked", DEADLINE, async || {
        executions.calls.load(Ordering::SeqCst) == 1
    })
    .await;
    system.proxy.terminate();
    let error = session.recv().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::BoxLost, "{error}");
    assert!(error.message.contains("shutting down"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operation_that_needs_a_running_environment_is_refused_without_one() {
    let system = System::start().await;
    let inside = FakeBox::start(Executions::default()).await;
    let start = ExecutionStart {
        id: ID.into(),
        ..ExecutionStart::default()
    };
    let open = Open {
        status: EnvironmentStatus::Terminated,
        address: None,
        ..inside.open(execution(Operation::Start(start)))
    };
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let error = session.recv().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotRunning, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn states_of_executions_are_answered_without_records_that_have_no_event() {
    let system = System::start().await;
    let inside = FakeBox::start(Executions::default()).await;
    let request = ExecutionsRequest {
        environment: inside.id.clone(),
        address: inside.address,
    };
    let gateway = &system.gateway;
    let reply = eventually_some("the box answers", DEADLINE, async || {
        let within = Duration::from_secs(5);
        let asked = gateway
            .bus
            .call_cluster::<GetExecutions>(&gateway.cluster, &request, within);
        asked.await.ok()
    })
    .await;
    let expected = EventExecution {
        id: ID.parse().unwrap(),
        status: EventExecutionStatus::Exited,
        exit_code: Some(3),
    };
    assert_eq!(reply.executions, [expected]);
}
