//! The sessions with exec-proxies that work on executions.

use std::time::Duration;

use agentbox_contracts::environment::Status;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, OpenKind};
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{Execution, ExecutionRequest};
use tokio::time::timeout;

use crate::box_session::{self, BoxSession};
use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;

/// How long an operation may take that does not wait for a command.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

pub(crate) fn lost() -> Error {
    Error::new(
        ErrorCode::BoxLost,
        "the connection to the execution was lost; whether it has ended is unknown",
    )
}

fn late() -> Error {
    Error::new(
        ErrorCode::Timeout,
        "the environment did not answer in time; try again",
    )
}

/// Opens a session for one operation. Of an environment that has ended, the archive answers.
///
/// # Errors
/// [`ErrorCode::NotRunning`] for one that has not started, and as [`box_session::open`].
pub(crate) async fn open(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    operation: Operation,
) -> Result<BoxSession, Error> {
    if location.status == Status::Pending {
        // It may have no cluster yet.
        location.clone().require_running()?;
    }
    let request = ExecutionRequest {
        operation: Some(operation),
    };
    box_session::open(gateway, location, OpenKind::Execution(request)).await
}

/// The next output of a session.
///
/// # Errors
/// [`ErrorCode::BoxLost`] at the end of the session, [`ErrorCode::Internal`] for another message.
pub(crate) fn output(message: Option<FromBox>) -> Result<Output, Error> {
    match message {
        Some(FromBox::Execution(message)) => message.output.ok_or_else(Error::internal),
        Some(_) => Err(Error::internal()),
        None => Err(lost()),
    }
}

/// The execution in the last message of a session.
///
/// # Errors
/// As [`output`].
pub(super) fn execution(message: Option<FromBox>) -> Result<Execution, Error> {
    match output(message)? {
        Output::Execution(execution) => Ok(execution),
        _ => Err(Error::internal()),
    }
}

/// Performs an operation that answers with the execution.
///
/// # Errors
/// The error of the box, or that it did not answer `within` this time.
pub(super) async fn call(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    operation: Operation,
    within: Duration,
) -> Result<Execution, Error> {
    let answer = async {
        let mut session = open(gateway, location, operation).await?;
        execution(session.recv().await?)
    };
    timeout(within, answer).await.map_err(|_| late())?
}
