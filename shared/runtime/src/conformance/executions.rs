//! Executions outlive the connections of their callers, and are known after the end of their box.

use std::time::Duration;

use agentbox_box_protocol::client::BoxClient;
use agentbox_contracts::executions::execution_input::Input;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    Execution, ExecutionInput, ExecutionOutput, ExecutionRequest, ExecutionStart, ExecutionStatus,
    GetExecution, Offsets, ReadOutput, StdinMode, WriteStdin,
};
use agentbox_contracts::ids::ExecId;
use futures::stream;
use tonic::{Status, Streaming};

use super::boxd::{boxd_of, boxd_through, error_code, failed, in_time};
use super::{Subject, Violation, check};
use crate::{BoxConnector, BoxSpec, Runtime};

type Outcome = Result<(), Violation>;

/// How long an execution may take to end.
const WAIT_MS: u64 = 20_000;

/// # Errors
/// When the driver does not meet the requirement.
pub async fn killed_box_keeps_its_executions<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    let boxd = boxd_of(s, &spec).await?;
    let ended = start(&boxd, &["sh", "-c", "exit 3"]).await?;
    let ended = end_of(&boxd, &ended.id).await?;
    check(ended.exit_code == Some(3), || format!("{ended:?}"))?;
    let running = start(&boxd, &["sleep", "600"]).await?;
    s.first.stop(&spec.id, Duration::ZERO).await?;
    s.end_of(&spec.id).await?;

    let left = s.second.last_executions(&spec.id).await?;
    let found = |id: &str| left.iter().find(|execution| execution.id == id);
    let (ended, running) = (found(&ended.id), found(&running.id));
    let has_outcome = ended.is_some_and(|execution| {
        execution.status() == ExecutionStatus::Exited && execution.exit_code == Some(3)
    });
    let has_none = running.is_some_and(|execution| execution.status().is_active());
    check(has_outcome && has_none && left.len() == 2, || {
        format!("{left:?}")
    })?;
    s.first.remove(&spec.id).await?;
    let left = s.second.last_executions(&spec.id).await?;
    check(left.is_empty(), || format!("{left:?}"))
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn execution_outlives_its_connection_and_is_resumed<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    resume(s, &spec).await
}

/// Starts an execution through the first driver, loses the connection, and continues its input and
/// output through the second.
pub(super) async fn resume<D: Runtime + BoxConnector>(s: &Subject<D>, spec: &BoxSpec) -> Outcome {
    let request = ExecutionStart {
        stdin: StdinMode::Open.into(),
        ..command(&[
            "sh",
            "-c",
            "echo first; read line; echo \"second $line\"; exit 5",
        ])
    };
    let id = request.id.clone();
    let before = boxd_through(&s.first, spec).await?;
    let started = call(&before, Operation::Start(request.clone()), &[]).await?;
    let following = follow(&before, &id, 0, "first\n").await?;
    drop((following, before));

    let after = boxd_through(&s.second, spec).await?;
    let again = call(&after, Operation::Start(request), &[]).await?;
    check(
        again.status().is_active() && again.created_unix_nanos == started.created_unix_nanos,
        || format!("{started:?} became {again:?}"),
    )?;
    let write = Operation::Stdin(WriteStdin {
        id: id.clone(),
        close: true,
    });
    let input = [Input::Data("line\n".into()), Input::End(())];
    call(&after, write, &input).await?;
    // After the 6 bytes of "first\n".
    follow(&after, &id, 6, "second line\n").await?;
    let ended = end_of(&after, &id).await?;
    check(
        ended.exit_code == Some(5) && ended.stdout_bytes == 18,
        || format!("{ended:?}"),
    )
}

/// A command with a new id.
fn command(words: &[&str]) -> ExecutionStart {
    ExecutionStart {
        id: ExecId::random().to_string(),
        command: words.iter().map(|&word| word.to_owned()).collect(),
        ..Default::default()
    }
}

/// Starts a command as the box's user.
///
/// # Errors
/// When boxd does not start it.
pub(super) async fn start(boxd: &BoxClient, words: &[&str]) -> Result<Execution, Violation> {
    call(boxd, Operation::Start(command(words)), &[]).await
}

/// Runs a command as a user. Returns its outcome and standard output, or the error code of boxd.
///
/// # Errors
/// When boxd does not answer.
pub(super) async fn run_as(
    boxd: &BoxClient,
    user: &str,
    words: &[&str],
) -> Result<Result<(Execution, String), String>, Violation> {
    let request = ExecutionStart {
        user: user.to_owned(),
        ..command(words)
    };
    let id = request.id.clone();
    let started = in_time(async { Ok(open(boxd, Operation::Start(request), &[]).await) }).await?;
    let mut started = match started {
        Ok(answers) => answers,
        Err(status) => return Ok(Err(error_code(&status))),
    };
    read_execution(&mut started).await?;
    let ended = end_of(boxd, &id).await?;
    let read = ReadOutput {
        id,
        stdout: true,
        ..Default::default()
    };
    let mut answers = in_time(async {
        let opened = open(boxd, Operation::Output(read), &[]).await;
        opened.map_err(failed)
    })
    .await?;
    let mut output = Vec::new();
    while let Output::Output(piece) = next(&mut answers).await? {
        output.extend_from_slice(&piece.data);
    }
    Ok(Ok((ended, String::from_utf8_lossy(&output).into_owned())))
}

/// Waits for the end of an execution.
async fn end_of(boxd: &BoxClient, id: &str) -> Result<Execution, Violation> {
    let wait = GetExecution {
        id: id.to_owned(),
        wait_ms: WAIT_MS,
    };
    let ended = call(boxd, Operation::Get(wait), &[]).await?;
    check(!ended.status().is_active(), || {
        format!("not ended within {WAIT_MS} ms: {ended:?}")
    })?;
    Ok(ended)
}

/// Follows standard output from an offset until it is `expected`; returns the open call.
async fn follow(
    boxd: &BoxClient,
    id: &str,
    from: u64,
    expected: &str,
) -> Result<Streaming<ExecutionOutput>, Violation> {
    let read = ReadOutput {
        id: id.to_owned(),
        stdout: true,
        stderr: false,
        from: Some(Offsets {
            stdout: from,
            stderr: 0,
        }),
        follow: true,
    };
    let mut answers = in_time(async {
        let opened = open(boxd, Operation::Output(read), &[]).await;
        opened.map_err(failed)
    })
    .await?;
    let mut output = Vec::new();
    while output.len() < expected.len() {
        match next(&mut answers).await? {
            Output::Output(piece) if piece.offset == from + output.len() as u64 => {
                output.extend_from_slice(&piece.data);
            }
            other => {
                return Err(failed(format!(
                    "expected {expected:?} from {from} on, got {other:?} after {output:?}"
                )));
            }
        }
    }
    check(output == expected.as_bytes(), || {
        format!("expected {expected:?} from {from} on, got {output:?}")
    })?;
    Ok(answers)
}

/// Performs an operation that answers one execution.
async fn call(
    boxd: &BoxClient,
    operation: Operation,
    inputs: &[Input],
) -> Result<Execution, Violation> {
    let mut answers = in_time(async {
        let opened = open(boxd, operation, inputs).await;
        opened.map_err(failed)
    })
    .await?;
    read_execution(&mut answers).await
}

/// Opens a call with all of its inputs.
async fn open(
    boxd: &BoxClient,
    operation: Operation,
    inputs: &[Input],
) -> Result<Streaming<ExecutionOutput>, Status> {
    let request = ExecutionRequest {
        operation: Some(operation),
    };
    let inputs: Vec<ExecutionInput> = [Input::Request(request)]
        .into_iter()
        .chain(inputs.iter().cloned())
        .map(|input| ExecutionInput { input: Some(input) })
        .collect();
    let answers = boxd.clone().executions(stream::iter(inputs)).await?;
    Ok(answers.into_inner())
}

async fn read_execution(answers: &mut Streaming<ExecutionOutput>) -> Result<Execution, Violation> {
    match next(answers).await? {
        Output::Execution(execution) => Ok(execution),
        other => Err(failed(format!("expected an execution, got {other:?}"))),
    }
}

async fn next(answers: &mut Streaming<ExecutionOutput>) -> Result<Output, Violation> {
    in_time(async {
        let answer = answers.message().await.map_err(failed)?;
        answer
            .and_then(|answer| answer.output)
            .ok_or_else(|| failed("boxd ended a call on executions without an answer"))
    })
    .await
}
