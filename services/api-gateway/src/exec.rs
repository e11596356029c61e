//! `POST /environments/{id}/exec`: runs one command and returns its output and exit.
//!
//! * I1. When the client disconnects its command is killed: the handler's future is dropped, with
//!   it the session, and the exec-proxy kills the process group.
//! * I2. The output of one command takes at most twice the cap in memory, once for each of stdout
//!   and stderr. The exec-proxy truncates it. The output of all commands of one user, and of all
//!   users, is bounded from its first byte until its client has read it, together with the stdin
//!   that the commands have not read ([`memory`]).
//! * I3. The exit code comes from the box. The gateway never invents one.

mod answer;
pub(crate) mod memory;
mod output;
mod request;
mod run;

use std::time::Duration;

use agentbox_api::exec::{ExecBody, ExecReply};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{MAX_CHUNK, ToBox};
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;

use crate::audit;
use crate::box_loss;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::{Answer, Json};
use crate::memory::SessionKind;
use crate::state::Gateway;
use memory::{InputMemory, ResultMemory};

pub(crate) use request::{command_line, total_size, variables, working_dir};

/// How long the exec-proxy may take to answer the first message of a session.
pub(crate) const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Added to the command's own timeout: to start and kill the command, and to receive its output.
const ANSWER_GRACE: Duration = Duration::from_secs(30);

/// Splits stdin into messages of a session.
pub(crate) fn stdin_messages(mut bytes: Bytes) -> Vec<ToBox> {
    // The caller may append the end of stdin.
    let mut messages = Vec::with_capacity(bytes.len().div_ceil(MAX_CHUNK) + 1);
    while !bytes.is_empty() {
        messages.push(ToBox::Data(bytes.split_to(bytes.len().min(MAX_CHUNK))));
    }
    messages
}

/// Run a command
///
/// Runs a command in a running environment and answers when it has ended. A command that fails
/// is answered with 200 too: see `exit_code`. If the client disconnects, the command is killed.
/// Processes that a command leaves in the background keep running; their later output is dropped.
#[utoipa::path(post, operation_id = "execInEnvironment", path = "/environments/{id}/exec", tag = "exec",
    params(EnvironmentParameter), request_body = ExecBody,
    responses((status = 200, description = "The result of the command.", body = ExecReply)))]
pub(crate) async fn exec(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Json(body): Json<ExecBody>,
) -> Answer<Response> {
    request::check(&body, gateway.config.max_exec_timeout_s)?;
    let location = location.require_running()?;
    // A request beyond a limit has no entry in the audit trail.
    let session = gateway.begin_session(&principal, SessionKind::Exec)?;
    let memory = ResultMemory::reserve(&gateway.results, &principal.user)?;
    let stdin_length = body.stdin.as_ref().map_or(0, String::len);
    let input = InputMemory::reserve(&gateway.results, &principal.user, stdin_length)?;
    audit::accept(&gateway, AuditAction::Exec, &location.id, &body.command).await?;
    let timeout = Duration::from_secs(body.timeout);
    let encoding = body.output_encoding;
    let command = request::command(body, gateway.config.max_exec_output_bytes);
    let running = run::run(&gateway, &location, command, input, memory);
    let outcome = tokio::time::timeout(timeout + ANSWER_GRACE, running)
        .await
        .map_err(|_| {
            Error::new(
                ErrorCode::Timeout,
                "the result of the command did not arrive in time; the command is killed",
            )
        })?;
    match outcome {
        Ok(collected) => Ok(answer::response(&gateway, session, collected, encoding)),
        Err(error) => Err(box_loss::with_reason(&gateway, &location.id, error)
            .await
            .into()),
    }
}
