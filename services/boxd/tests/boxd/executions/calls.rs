//! The `Executions` calls of a test.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use agentbox_box_protocol::ERROR_CODE_METADATA;
use agentbox_box_protocol::client::BoxClient;
use agentbox_contracts::executions::control_execution::Control;
use agentbox_contracts::executions::execution_input::Input;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    AttachExecution, ControlExecution, DeleteExecution, Execution, ExecutionInput, ExecutionOutput,
    ExecutionRequest, ExecutionStart, ExecutionStatus, GetExecution, Offsets, ReadOutput,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::support::DEADLINE;

/// One call: its inputs and outputs.
pub struct Call {
    pub inputs: mpsc::Sender<ExecutionInput>,
    outputs: Streaming<ExecutionOutput>,
}

impl Call {
    pub async fn open(client: &BoxClient, operation: Operation) -> Result<Self, Status> {
        let (inputs, receiver) = mpsc::channel(4);
        let request = ExecutionRequest {
            operation: Some(operation),
        };
        let first = ExecutionInput {
            input: Some(Input::Request(request)),
        };
        inputs.send(first).await.unwrap();
        let outputs = client
            .clone()
            .executions(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(Self { inputs, outputs })
    }

    pub async fn send(&self, input: Input) {
        // Fails once the call has ended, which the outputs show.
        let _ = self
            .inputs
            .send(ExecutionInput { input: Some(input) })
            .await;
    }

    /// The next message; panics after the deadline.
    pub async fn next(&mut self) -> Result<Option<Output>, Status> {
        let message = tokio::time::timeout(DEADLINE, self.outputs.message());
        let message = message.await.expect("an output in time")?;
        Ok(message.map(|message| message.output.unwrap()))
    }

    /// The record that ends the call.
    pub async fn record(&mut self) -> Result<Execution, Status> {
        match self.next().await?.expect("a record") {
            Output::Execution(execution) => Ok(execution),
            other => panic!("{other:?}"),
        }
    }

    /// Reads output until stdout contains `text`.
    pub async fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            let shown = String::from_utf8_lossy(&seen).into_owned();
            if shown.contains(text) {
                return shown;
            }
            match self.next().await.unwrap() {
                Some(Output::Output(piece)) => seen.extend_from_slice(&piece.data),
                Some(Output::HasInput(_) | Output::Attached(_)) => {}
                other => panic!("{other:?} before {text:?}, after {shown:?}"),
            }
        }
    }

    /// Reads to the end of the execution.
    pub async fn finish(mut self) -> Finished {
        let mut finished = Finished::default();
        while let Some(output) = self.next().await.unwrap() {
            match output {
                Output::Output(piece) => {
                    let stream = usize::from(piece.stderr);
                    let at = finished.data[stream].len() as u64 + finished.gaps[stream];
                    assert_eq!(piece.offset, finished.begin[stream] + at);
                    finished.data[stream].extend_from_slice(&piece.data);
                }
                Output::Gap(gap) => finished.gaps[usize::from(gap.stderr)] += gap.bytes,
                Output::Execution(execution) => finished.execution = Some(execution),
                Output::Attached(attached) => {
                    finished.begin = [attached.offsets.stdout, attached.offsets.stderr];
                }
                Output::HasInput(_) => {}
                Output::Executions(_) => panic!("{output:?}"),
            }
        }
        finished
    }
}

/// What a follower received.
#[derive(Debug, Default)]
pub struct Finished {
    pub begin: [u64; 2],
    pub data: [Vec<u8>; 2],
    pub gaps: [u64; 2],
    pub execution: Option<Execution>,
}

impl Finished {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.data[0]).unwrap()
    }
}

/// `command` as an execution with an id of its own.
pub fn command(command: &[&str]) -> ExecutionStart {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    ExecutionStart {
        id: format!("exec-{:016}", NEXT.fetch_add(1, Ordering::Relaxed)),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..Default::default()
    }
}

pub fn script(script: &str) -> ExecutionStart {
    command(&["sh", "-c", script])
}

pub async fn start(client: &BoxClient, start: ExecutionStart) -> Result<Execution, Status> {
    one(client, Operation::Start(start)).await
}

/// Starts it; returns its id.
pub async fn started(client: &BoxClient, wanted: ExecutionStart) -> String {
    start(client, wanted).await.unwrap().id
}

/// Starts it and waits for its end.
pub async fn run(client: &BoxClient, wanted: ExecutionStart) -> Execution {
    let id = started(client, wanted).await;
    get(client, &id, 20_000).await.unwrap()
}

pub async fn get(client: &BoxClient, id: &str, wait_ms: u64) -> Result<Execution, Status> {
    let id = id.to_owned();
    one(client, Operation::Get(GetExecution { id, wait_ms })).await
}

pub async fn delete(client: &BoxClient, id: &str, purge: bool) -> Result<Execution, Status> {
    let id = id.to_owned();
    one(client, Operation::Delete(DeleteExecution { id, purge })).await
}

pub async fn control(client: &BoxClient, id: &str, control: Control) -> Result<Execution, Status> {
    let request = ControlExecution {
        id: id.to_owned(),
        control: Some(control),
    };
    one(client, Operation::Control(request)).await
}

pub async fn list(client: &BoxClient) -> Vec<Execution> {
    let mut call = Call::open(client, Operation::List(())).await.unwrap();
    let mut executions = Vec::new();
    loop {
        match call.next().await.unwrap() {
            Some(Output::Executions(list)) => {
                executions.extend(list.executions);
                if list.is_last {
                    return executions;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn one(client: &BoxClient, operation: Operation) -> Result<Execution, Status> {
    Call::open(client, operation).await?.record().await
}

/// Both streams, until the end.
pub async fn follow(client: &BoxClient, id: &str, from: Option<Offsets>) -> Call {
    let read = ReadOutput {
        id: id.to_owned(),
        stdout: true,
        stderr: true,
        from,
        follow: true,
    };
    Call::open(client, Operation::Output(read)).await.unwrap()
}

/// What is kept of both streams now.
pub async fn kept(client: &BoxClient, id: &str) -> Finished {
    let read = ReadOutput {
        id: id.to_owned(),
        stdout: true,
        stderr: true,
        from: Some(Offsets::default()),
        follow: false,
    };
    let call = Call::open(client, Operation::Output(read)).await;
    call.unwrap().finish().await
}

pub async fn attach(client: &BoxClient, id: &str, take_input: bool) -> Call {
    let attach = AttachExecution {
        id: id.to_owned(),
        from: None,
        take_input,
    };
    Call::open(client, Operation::Attach(attach)).await.unwrap()
}

pub fn status(execution: &Execution) -> ExecutionStatus {
    ExecutionStatus::try_from(execution.status).unwrap()
}

/// The error code in a status.
pub fn code_of(status: &Status) -> &str {
    let code = status.metadata().get(ERROR_CODE_METADATA);
    code.map_or("", |code| code.to_str().unwrap())
}

pub fn pairs(given: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    given.iter().map(owned).collect()
}
