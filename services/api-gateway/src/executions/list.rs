//! `GET …/executions`: one page of the executions of an environment.

use agentbox_api::execution::{ExecutionBody, ExecutionList, ExecutionStatus, ListExecutionsQuery};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::executions::Execution;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::ids::UserId;
use agentbox_contracts::selector::Selector;
use axum::Json;
use axum::extract::State;
use tokio::time::timeout;

use super::retry::Retry;
use super::session::{self, ANSWER_DEADLINE};
use super::status::shown;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::query::page;
use crate::edge::{Answer, Query};
use crate::exec::command_size;
use crate::exec::memory::InputMemory;
use crate::lookup::EnvironmentLocation;
use crate::memory::SessionKind;
use crate::state::Gateway;

/// Bytes of a record besides its command and its labels.
const RECORD: usize = 1024;

/// Selects the executions of one page from all, which come newest first.
struct Page {
    status: Option<ExecutionStatus>,
    selector: Selector,
    limit: usize,
    offset: u64,
    /// The matching executions until now.
    total: u64,
    executions: Vec<ExecutionBody>,
}

impl Page {
    fn matches(&self, execution: &ExecutionBody) -> bool {
        self.status.is_none_or(|status| status == execution.status)
            && self
                .selector
                .matches(|key| execution.labels.get(key).map(String::as_str))
    }

    /// Counts an execution, and keeps it if it is on the page. Returns whether it is.
    fn add(&mut self, execution: Execution) -> bool {
        let execution = shown(execution);
        if !self.matches(&execution) {
            return false;
        }
        self.total += 1;
        let is_kept = self.total > self.offset && self.executions.len() < self.limit;
        if is_kept {
            self.executions.push(execution);
        }
        is_kept
    }

    fn clear(&mut self) {
        self.total = 0;
        self.executions.clear();
    }
}

/// Reads all executions into `page`. What the page holds is counted as memory of `user`. Of an
/// environment that has just ended, the archive answers.
async fn read(
    gateway: &Gateway,
    mut location: EnvironmentLocation,
    user: &UserId,
    page: &mut Page,
) -> Result<Vec<InputMemory>, Error> {
    let mut retry = Retry::new();
    loop {
        let attempt = read_once(gateway, &location, user, page);
        let error = match timeout(ANSWER_DEADLINE, attempt).await {
            Ok(Ok(held)) => return Ok(held),
            Ok(Err(error)) => error,
            Err(_) => Error::new(
                ErrorCode::Timeout,
                "the executions did not arrive in time; try again",
            ),
        };
        page.clear();
        retry.read_again(gateway, &mut location, error).await?;
    }
}

async fn read_once(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    user: &UserId,
    page: &mut Page,
) -> Result<Vec<InputMemory>, Error> {
    let mut held = Vec::new();
    let mut session = session::open(gateway, location, Operation::List(())).await?;
    loop {
        let Output::Executions(list) = session::output(session.recv().await?)? else {
            return Err(Error::internal());
        };
        let mut size = 0;
        for execution in list.executions {
            let of_one = RECORD + command_size(&execution.command, execution.labels.iter());
            if page.add(execution) {
                size += of_one;
            }
        }
        held.push(InputMemory::reserve(&gateway.results, user, size)?);
        if list.is_last {
            return Ok(held);
        }
    }
}

/// List executions
///
/// Returns one page of the executions of an environment, newest first. Ended ones stay listed until
/// they are forgotten, also after the environment has ended, for the retention time.
#[utoipa::path(get, operation_id = "listExecutions", path = "/environments/{id}/executions", tag = "executions",
    params(EnvironmentParameter, ListExecutionsQuery),
    responses((status = 200, description = "One page of executions.", body = ExecutionList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(query): Query<ListExecutionsQuery>,
) -> Answer<Json<ExecutionList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let mut page = Page {
        status: query.status,
        selector: query
            .label
            .as_deref()
            .unwrap_or("")
            .parse::<Selector>()
            .map_err(Error::from)?,
        limit: limit as usize,
        offset,
        total: 0,
        executions: Vec::new(),
    };
    let _share = gateway.begin_session(&principal, SessionKind::Execution)?;
    let _held = read(&gateway, location, &principal.user, &mut page).await?;
    Ok(Json(ExecutionList {
        executions: page.executions,
        total: page.total,
        limit,
        offset,
    }))
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::executions::ExecutionStatus as Status;

    use super::*;

    fn execution(id: usize, status: Status, label: &str) -> Execution {
        Execution {
            id: format!("exec-{id:016}"),
            status: status.into(),
            labels: [("step".to_owned(), label.to_owned())].into(),
            ..Execution::default()
        }
    }

    fn ids(
        status: Option<ExecutionStatus>,
        label: &str,
        limit: usize,
        offset: u64,
    ) -> (Vec<String>, u64) {
        let mut page = Page {
            status,
            selector: label.parse().unwrap(),
            limit,
            offset,
            total: 0,
            executions: Vec::new(),
        };
        for id in 0..6 {
            let status = if id % 2 == 0 {
                Status::Running
            } else {
                Status::Exited
            };
            page.add(execution(id, status, if id < 4 { "a" } else { "b" }));
        }
        let ids = page.executions.into_iter();
        (ids.map(|one| one.id[20..].to_owned()).collect(), page.total)
    }

    #[test]
    fn page_has_the_matching_executions_and_their_total() {
        let of = |texts: &[&str], total: u64| -> (Vec<String>, u64) {
            (texts.iter().map(|&text| text.to_owned()).collect(), total)
        };
        assert_eq!(ids(None, "", 10, 0), of(&["0", "1", "2", "3", "4", "5"], 6));
        assert_eq!(ids(None, "", 2, 3), of(&["3", "4"], 6));
        let running = Some(ExecutionStatus::Running);
        assert_eq!(ids(running, "", 10, 0), of(&["0", "2", "4"], 3));
        assert_eq!(ids(running, "step=a", 10, 1), of(&["2"], 2));
        assert_eq!(ids(None, "step!=a", 10, 0), of(&["4", "5"], 2));
        assert_eq!(ids(None, "", 10, 9), of(&[], 6));
    }
}
