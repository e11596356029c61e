//! `GET …/executions/{execution}`: the record of an execution, at once or at its end.

use std::time::Duration;

use agentbox_api::execution::{ExecutionBody, MAX_WAIT_S, WaitQuery};
use agentbox_contracts::error::Error;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{Execution, GetExecution};
use axum::Json;
use axum::extract::State;
use tokio::time::Instant;

use super::idempotency;
use super::retry::Retry;
use super::session::{self, ANSWER_DEADLINE};
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::{EnvironmentParameter, ExecutionId, ExecutionParameter};
use crate::edge::{Answer, Query};
use crate::lookup::EnvironmentLocation;
use crate::memory::SessionKind;
use crate::state::Gateway;

/// An execution as clients see it.
pub(super) fn shown(execution: Execution) -> ExecutionBody {
    idempotency::hide(execution).into()
}

/// Checks how long a request may wait.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
pub(super) fn waiting_time(query: &WaitQuery) -> Result<Duration, Error> {
    if query.wait > MAX_WAIT_S {
        return Err(Error::value(
            "wait",
            format_args!("must be at most {MAX_WAIT_S} seconds"),
            query.wait,
        ));
    }
    Ok(Duration::from_secs(query.wait))
}

/// Reads an execution, at its end or after `wait`. Of an environment that has just ended, or ends
/// meanwhile, the archive answers.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::NotFound`], or that the environment cannot be reached.
pub(super) async fn read(
    gateway: &Gateway,
    mut location: EnvironmentLocation,
    id: &str,
    wait: Duration,
) -> Result<Execution, Error> {
    let deadline = Instant::now() + wait;
    let mut retry = Retry::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let operation = Operation::Get(GetExecution {
            id: id.to_owned(),
            wait_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        });
        match session::call(gateway, &location, operation, left + ANSWER_DEADLINE).await {
            Ok(execution) => return Ok(execution),
            Err(error) => retry.read_again(gateway, &mut location, error).await?,
        }
    }
}

/// Get an execution
///
/// Returns one execution. With `wait` the answer comes when it has ended, or when the time is over;
/// however long it waits, it counts as one request. It works also after the environment has ended, for
/// the retention time.
#[utoipa::path(get, operation_id = "getExecution", path = "/environments/{id}/executions/{execution}", tag = "executions",
    params(EnvironmentParameter, ExecutionParameter, WaitQuery),
    responses((status = 200, description = "The execution.", body = ExecutionBody)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    ExecutionId(id): ExecutionId,
    Query(query): Query<WaitQuery>,
) -> Answer<Json<ExecutionBody>> {
    let wait = waiting_time(&query)?;
    let _share = gateway.begin_session(&principal, SessionKind::Execution)?;
    let execution = read(&gateway, location, id.as_str(), wait).await?;
    Ok(Json(shown(execution)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_is_at_most_a_minute() {
        assert_eq!(waiting_time(&WaitQuery { wait: 0 }), Ok(Duration::ZERO));
        let longest = waiting_time(&WaitQuery { wait: 60 });
        assert_eq!(longest, Ok(Duration::from_secs(60)));
        let error = waiting_time(&WaitQuery { wait: 61 }).unwrap_err();
        assert!(error.message.starts_with("wait: "), "{error}");
    }
}
