//! `POST …/executions`: starts an execution, once for each id.

use std::time::Duration;

use agentbox_api::execution::{ExecutionBody, StartExecution, WaitQuery};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::Error;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{Execution, ExecutionStart};
use agentbox_contracts::ids::ExecId;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::retry::{Retry, relocate};
use super::session::{self, ANSWER_DEADLINE};
use super::status::{self, shown, waiting_time};
use super::{idempotency, request};
use crate::audit;
use crate::box_loss;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::json::LargeJson;
use crate::edge::path::{BASE, EnvironmentParameter};
use crate::edge::{Answer, Query};
use crate::environments::idempotency_key;
use crate::exec::command_size;
use crate::exec::memory::InputMemory;
use crate::lookup::EnvironmentLocation;
use crate::memory::SessionKind;
use crate::state::Gateway;

/// How long a start is repeated whose session breaks.
const RETRY_LIMIT: Duration = Duration::from_secs(15);

/// Starts an execution in a running environment. A repeat with the same id starts nothing.
///
/// # Errors
/// The error of the box, or the reason of its loss.
pub(crate) async fn run(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    start: ExecutionStart,
) -> Result<Execution, Error> {
    match repeated(gateway, location.clone(), start).await {
        Ok(execution) => Ok(execution),
        Err(error) => Err(box_loss::with_reason(gateway, &location.id, error).await),
    }
}

async fn repeated(
    gateway: &Gateway,
    mut location: EnvironmentLocation,
    start: ExecutionStart,
) -> Result<Execution, Error> {
    let mut retry = Retry::new();
    loop {
        let operation = Operation::Start(start.clone());
        match session::call(gateway, &location, operation, ANSWER_DEADLINE).await {
            Ok(execution) => return Ok(execution),
            Err(error) => {
                let lost = error.clone();
                retry.pause(error, RETRY_LIMIT).await?;
                relocate(gateway, &mut location).await?;
                location = location.require_running().map_err(|_| lost)?;
            }
        }
    }
}

/// Start an execution
///
/// Starts a command in a running environment and answers at once. The command runs until it ends, or the
/// environment does: it needs no connection. Its output is kept, the newest part of each stream. Memory
/// of the environment holds it.
#[utoipa::path(post, operation_id = "startExecution", path = "/environments/{id}/executions", tag = "executions",
    params(EnvironmentParameter, WaitQuery,
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
        example = "train-4711",
        description = "Makes a repeated request safe: 1 to 255 printable ASCII characters, remembered as long as the \
            execution. The same key and body return the execution that was started first; the same key with \
            another body is refused with 409. Default: every request starts an execution.")),
    request_body = StartExecution,
    responses((status = 201, body = ExecutionBody,
        description = "The execution, or the one that the idempotency key started before. The `Location` header has its path.")))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(query): Query<WaitQuery>,
    headers: HeaderMap,
    LargeJson(body): LargeJson<StartExecution>,
) -> Answer<Response> {
    let wait = waiting_time(&query)?;
    let key = idempotency_key(&headers)?;
    let id = key.as_ref().map_or_else(ExecId::random, |key| {
        idempotency::id(&principal.user, &location.id, key)
    });
    let hash = key.map(|_| idempotency::request_hash(&body));
    let mut start = request::start(&id, body)?;
    if let Some(hash) = &hash {
        idempotency::add(&mut start.labels, hash.clone());
    }
    let location = location.require_running()?;
    // A request beyond a limit has no entry in the audit trail.
    let _share = gateway.begin_session(&principal, SessionKind::Execution)?;
    let size = start.stdin_bytes.len() + command_size(&start.command, start.env.iter());
    let memory = InputMemory::reserve(&gateway.results, &principal.user, size)?;
    let action = AuditAction::StartExecution;
    audit::accept(&gateway, action, &location.id, &start.command).await?;
    let mut execution = run(&gateway, &location, start).await?;
    drop(memory);
    if let Some(hash) = &hash {
        idempotency::check(&execution, hash)?;
    }
    let path = format!("{BASE}/environments/{}/executions/{id}", location.id);
    if !wait.is_zero() && execution.status().is_active() {
        let later = status::read(&gateway, location, id.as_str(), wait).await;
        // Whatever happened since, it was started, and the client must learn its id.
        execution = later.unwrap_or(execution);
    }
    let body = axum::Json(shown(execution));
    let mut response = (StatusCode::CREATED, body).into_response();
    if let Ok(path) = HeaderValue::from_str(&path) {
        response.headers_mut().insert(header::LOCATION, path);
    }
    Ok(response)
}
