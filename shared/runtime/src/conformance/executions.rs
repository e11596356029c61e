//! The executions of a box are known after its end.

use std::time::Duration;

use agentbox_contracts::executions::execution_input::Input;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    Execution, ExecutionInput, ExecutionRequest, ExecutionStart, ExecutionStatus, GetExecution,
};
use agentbox_contracts::ids::ExecId;
use futures::stream;

use super::session::{boxd_of, failed};
use super::{Subject, Violation, check};
use crate::{BoxConnector, BoxSpec, Runtime};

/// How long an execution may take to end.
const WAIT_MS: u64 = 20_000;

/// # Errors
/// When the driver does not meet the requirement.
pub async fn killed_box_keeps_its_executions<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Result<(), Violation> {
    let spec = s.spec();
    s.run(&spec).await?;
    let ended = start(s, &spec, &["sh", "-c", "exit 3"]).await?;
    let wait = Operation::Get(GetExecution {
        id: ended.id.clone(),
        wait_ms: WAIT_MS,
    });
    let ended = call(s, &spec, wait).await?;
    check(ended.exit_code == Some(3), || format!("{ended:?}"))?;
    let running = start(s, &spec, &["sleep", "600"]).await?;
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

async fn start<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    spec: &BoxSpec,
    command: &[&str],
) -> Result<Execution, Violation> {
    let start = Operation::Start(ExecutionStart {
        id: ExecId::random().to_string(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        ..Default::default()
    });
    call(s, spec, start).await
}

/// Performs an operation that answers one execution.
async fn call<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    spec: &BoxSpec,
    operation: Operation,
) -> Result<Execution, Violation> {
    let mut boxd = boxd_of(s, spec).await?;
    let request = ExecutionRequest {
        operation: Some(operation),
    };
    let input = ExecutionInput {
        input: Some(Input::Request(request)),
    };
    let answers = boxd.executions(stream::iter([input])).await;
    let mut answers = answers.map_err(failed)?.into_inner();
    while let Some(answer) = answers.message().await.map_err(failed)? {
        if let Some(Output::Execution(execution)) = answer.output {
            return Ok(execution);
        }
    }
    Err(failed("boxd answered no execution"))
}
