//! The states of the executions of a box, for the events about them.
//!
//! * I1. A box is not trusted: records that boxd has not made are left out, and a box that does not end
//!   its answer is left after [`DEADLINE`].

use std::time::Duration;

use agentbox_contracts::environment::{EventExecution, EventExecutionStatus};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ExecutionsReply, ExecutionsRequest};
use agentbox_contracts::executions::Execution;

use crate::archive::executions::list;
use crate::boxes::BoxError;
use crate::clusters::Cluster;
use crate::metrics;

/// How long a box may take to send its records.
const DEADLINE: Duration = Duration::from_secs(2);

/// Answers which executions a box has, and their states.
///
/// # Errors
/// `NotRunning` when the box cannot be reached, `Timeout` when it does not answer.
pub async fn answer(
    cluster: &Cluster,
    request: ExecutionsRequest,
) -> Result<ExecutionsReply, Error> {
    let listed = tokio::time::timeout(DEADLINE, records(cluster, &request)).await;
    let result = match listed {
        Ok(Ok(records)) => Ok(ExecutionsReply {
            executions: records.iter().filter_map(state).collect(),
        }),
        Ok(Err(error)) => Err(error.public()),
        Err(_) => Err(Error::new(
            ErrorCode::Timeout,
            "the box did not list its executions in time",
        )),
    };
    result.inspect_err(|error| metrics::failed("executions", error.code))
}

async fn records(
    cluster: &Cluster,
    request: &ExecutionsRequest,
) -> Result<Vec<Execution>, BoxError> {
    let boxes = &cluster.boxes;
    let lease = boxes.lease_request(&request.environment, request.address)?;
    list(&lease).await
}

/// `None`: the execution is starting, or boxd has not made its record.
fn state(execution: &Execution) -> Option<EventExecution> {
    Some(EventExecution {
        id: execution.id.parse().ok()?,
        status: EventExecutionStatus::of(execution.status())?,
        exit_code: execution.exit_code,
    })
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::executions::ExecutionStatus;

    use super::*;

    #[test]
    fn record_without_a_valid_id_or_a_known_state_is_left_out() {
        let record = |id: &str, status: ExecutionStatus| Execution {
            id: id.to_owned(),
            status: status.into(),
            exit_code: Some(3),
            ..Execution::default()
        };
        let id = "exec-0123456789abcdef";
        let exited = state(&record(id, ExecutionStatus::Exited)).unwrap();
        assert_eq!(exited.id.as_str(), id);
        assert_eq!(exited.status, EventExecutionStatus::Exited);
        assert_eq!(exited.exit_code, Some(3));
        assert_eq!(state(&record("../x", ExecutionStatus::Exited)), None);
        assert_eq!(state(&record(id, ExecutionStatus::Starting)), None);
    }
}
