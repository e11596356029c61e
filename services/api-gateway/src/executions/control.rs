//! Signals, sizes and the end of an execution.

use agentbox_api::execution::{DeleteExecutionQuery, SendSignal, TerminalSize};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::Error;
use agentbox_contracts::executions::control_execution::Control;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{ControlExecution, DeleteExecution};
use agentbox_contracts::identity::Principal;
use agentbox_contracts::ids::ExecId;
use axum::extract::State;
use axum::http::StatusCode;

use super::request::size;
use super::session::{self, ANSWER_DEADLINE};
use crate::attach::signal_name;
use crate::audit;
use crate::box_loss;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::{EnvironmentParameter, ExecutionId, ExecutionParameter};
use crate::edge::{Answer, Json, Query};
use crate::lookup::EnvironmentLocation;
use crate::memory::SessionKind;
use crate::state::Gateway;

/// Performs an operation on an execution of a running environment.
async fn perform(
    gateway: &Gateway,
    principal: &Principal,
    location: EnvironmentLocation,
    operation: Operation,
) -> Result<StatusCode, Error> {
    let location = location.require_running()?;
    let _share = gateway.begin_session(principal, SessionKind::Execution)?;
    audit::accept(gateway, AuditAction::ControlExecution, &location.id, &[]).await?;
    match session::call(gateway, &location, operation, ANSWER_DEADLINE).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(box_loss::with_reason(gateway, &location.id, error).await),
    }
}

/// Kills an execution whose client has left. If that fails, boxd kills it after its grace.
pub(crate) async fn kill(gateway: &Gateway, location: &EnvironmentLocation, id: &str) {
    let operation = Operation::Delete(DeleteExecution {
        id: id.to_owned(),
        purge: false,
    });
    if let Err(error) = session::call(gateway, location, operation, ANSWER_DEADLINE).await {
        tracing::info!(error = %ErrorChain(&error), "the command of a closed terminal could not be killed at once");
    }
}

/// Send a signal
///
/// Sends a signal to the process group of a running execution. One that has ended is a conflict.
#[utoipa::path(post, operation_id = "signalExecution", path = "/environments/{id}/executions/{execution}/signal", tag = "executions",
    params(EnvironmentParameter, ExecutionParameter), request_body = SendSignal,
    responses((status = 204, description = "The signal was sent.")))]
pub(crate) async fn signal(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    ExecutionId(id): ExecutionId,
    Json(body): Json<SendSignal>,
) -> Answer<StatusCode> {
    let control = Control::Signal(signal_name(body.signal)?);
    Ok(perform(&gateway, &principal, location, controlled(&id, control)).await?)
}

/// Resize the terminal
///
/// Changes the size of the terminal of an execution. One without a terminal is a conflict.
#[utoipa::path(post, operation_id = "resizeExecution", path = "/environments/{id}/executions/{execution}/resize", tag = "executions",
    params(EnvironmentParameter, ExecutionParameter), request_body = TerminalSize,
    responses((status = 204, description = "The terminal has the size.")))]
pub(crate) async fn resize(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    ExecutionId(id): ExecutionId,
    Json(body): Json<TerminalSize>,
) -> Answer<StatusCode> {
    let control = Control::Resize(size(body)?);
    Ok(perform(&gateway, &principal, location, controlled(&id, control)).await?)
}

fn controlled(id: &ExecId, control: Control) -> Operation {
    Operation::Control(ControlExecution {
        id: id.to_string(),
        control: Some(control),
    })
}

/// End an execution
///
/// Kills the process group of an execution. Its record and its output stay, unless `purge` is true.
/// Deleting it again has no further effect.
#[utoipa::path(delete, operation_id = "deleteExecution", path = "/environments/{id}/executions/{execution}", tag = "executions",
    params(EnvironmentParameter, ExecutionParameter, DeleteExecutionQuery),
    responses((status = 204, description = "The execution has ended.")))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    ExecutionId(id): ExecutionId,
    Query(query): Query<DeleteExecutionQuery>,
) -> Answer<StatusCode> {
    let operation = Operation::Delete(DeleteExecution {
        id: id.to_string(),
        purge: query.purge,
    });
    Ok(perform(&gateway, &principal, location, operation).await?)
}
