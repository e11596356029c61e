//! Finds out why a box was lost under a command.
//!
//! A node that fails takes many boxes with it, each with several sessions, while the scheduler is
//! busy with the same failure. So a session waits until the route mirror shows that its
//! environment no longer runs, and then asks the scheduler once.
//!
//! * I1. A lost session costs at most one request to the scheduler.

use std::time::Duration;

use agentbox_bus::RouteTable;
use agentbox_contracts::environment::{Environment, Status, StatusReason};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::EnvironmentId;
use tokio::time::timeout;

use crate::lookup;
use crate::state::Gateway;

/// How long the scheduler may take to notice the loss, also on a busy node. A kubelet checks once a
/// second, and the last output is archived first. After this time the scheduler is asked even if
/// the mirror still shows a running environment, because a notification may have been lost.
const REASON_TIMEOUT: Duration = Duration::from_secs(8);

/// Waits until the environment no longer runs, at most for `limit`, then awaits `read_record`. It
/// is a future, so the scheduler is asked once.
///
/// Returns the environment if it has a reason for its end, `None` if it still runs.
///
/// # Errors
/// The error of `read_record`.
async fn wait_for_reason(
    routes: &RouteTable,
    id: &EnvironmentId,
    limit: Duration,
    read_record: impl Future<Output = Result<Environment, Error>>,
) -> Result<Option<Environment>, Error> {
    let mut route = routes.watch(id);
    let has_stopped = route.wait_for(|route| route.is_none_or(|r| r.status != Status::Running));
    let _ = timeout(limit, has_stopped).await;
    let environment = read_record.await?;
    let has_reason = environment.status_reason.is_some();
    Ok(has_reason.then_some(environment))
}

/// Waits until it is known why an environment has ended whose box cannot be reached. Returns the
/// environment, or `None` if it still runs.
///
/// # Errors
/// [`ErrorCode::NotFound`], or that the scheduler cannot be reached.
pub(crate) async fn reason(
    gateway: &Gateway,
    id: &EnvironmentId,
) -> Result<Option<Environment>, Error> {
    let read_record = lookup::read_record(gateway, id.clone());
    wait_for_reason(&gateway.routes, id, REASON_TIMEOUT, read_record).await
}

/// Adds the reason to the error of a lost box, for a command that may have run: without a reason
/// the error stays, because whether the command has ended is unknown. Other errors are returned
/// unchanged.
pub(crate) async fn with_reason(gateway: &Gateway, id: &EnvironmentId, error: Error) -> Error {
    if error.code != ErrorCode::BoxLost {
        return error;
    }
    explain(error, reason(gateway, id).await)
}

fn explain(error: Error, reason: Result<Option<Environment>, Error>) -> Error {
    match reason {
        Ok(Some(environment)) => describe(&environment, &error),
        _ => error,
    }
}

/// Classifies the error of a lost box: the environment no longer exists, ended as intended, lost
/// its box, or still runs and cannot be reached. Other errors are returned unchanged.
pub(crate) async fn classify(gateway: &Gateway, id: &EnvironmentId, error: Error) -> Error {
    if error.code != ErrorCode::BoxLost {
        return error;
    }
    classify_outcome(error, reason(gateway, id).await)
}

fn classify_outcome(error: Error, reason: Result<Option<Environment>, Error>) -> Error {
    match reason {
        Ok(Some(environment)) => describe(&environment, &error),
        Ok(None) => Error::new(ErrorCode::Unavailable, error.message),
        Err(not_found) if not_found.code == ErrorCode::NotFound => not_found,
        Err(_) => error,
    }
}

/// Whether the environment ended as intended: it was deleted, it expired, or its main command
/// exited. An environment without a main command is not intended to exit.
fn was_expected(environment: &Environment) -> bool {
    match environment.status_reason {
        Some(StatusReason::Deleted | StatusReason::Expired) => true,
        Some(StatusReason::Exited) => environment.request.has_main_command(),
        _ => false,
    }
}

/// The error of a lost box with the reason of its end. Every operation names an intended end by the
/// same code.
fn describe(environment: &Environment, error: &Error) -> Error {
    let code = if was_expected(environment) {
        ErrorCode::EnvironmentEnded
    } else {
        error.code
    };
    let status = environment.status.as_str();
    let reason = environment
        .status_reason
        .map(|reason| format!(", {}", reason.as_str()))
        .unwrap_or_default();
    let detail = environment
        .status_message
        .as_ref()
        .map(|message| format!(": {message}"))
        .unwrap_or_default();
    Error::new(
        code,
        format!(
            "{}; the environment is {status}{reason}{detail}",
            error.message
        ),
    )
}

#[cfg(test)]
pub(crate) mod tests;
