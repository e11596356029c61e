//! `POST /environments/{id}/exec`: runs one command and returns its output and exit.
//!
//! * I1. When the client disconnects its command is killed: the handler's future, or the body of its
//!   answer, is dropped, with it the session, and the exec-proxy kills the process group.
//! * I2. The output of one command takes at most twice the cap in memory, once for each of stdout
//!   and stderr. The exec-proxy truncates it. The output of all commands of one user, and of all
//!   users, is bounded from its first byte until its client has read it, together with the stdin
//!   that the commands have not read ([`memory`]). Streamed output is not collected ([`events`]).
//! * I3. The exit code comes from the box. The gateway never invents one.

mod answer;
mod body;
mod events;
mod form;
mod input;
pub(crate) mod memory;
mod output;
mod request;
mod run;

use std::time::Duration;

use agentbox_api::exec::{ExecBody, ExecForm, ExecReply};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{MAX_CHUNK, ToBox};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use bytes::Bytes;

use crate::audit;
use crate::authorize::Action;
use crate::box_loss;
use crate::edge::Answer;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::list_header::elements;
use crate::edge::path::EnvironmentParameter;
use crate::memory::SessionKind;
use crate::state::Gateway;
use crate::stream::{StreamGrant, sse};
use input::Input;
use memory::{InputMemory, ResultMemory};

#[cfg(fuzzing)]
pub(crate) use form::parse as parse_form;
pub(crate) use request::{
    check_command, check_command_line, check_timeout, check_total_size, check_user,
    check_variables, check_working_dir, command_size, decode_base64,
};

/// Bytes of a form that are in memory at once: one frame of the body.
const FORM_BUFFER: usize = 128 * 1024;
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

/// Whether the client asks for server-sent events.
fn wants_events(headers: &HeaderMap) -> bool {
    elements(headers, &header::ACCEPT)
        .filter_map(|range| range.split(';').next())
        .any(|range| range.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// What the output of a command may take in memory besides its result.
const fn session_kind(is_streamed: bool) -> SessionKind {
    match is_streamed {
        true => SessionKind::Output,
        false => SessionKind::Exec,
    }
}

fn overdue() -> Error {
    Error::new(
        ErrorCode::Timeout,
        "the result of the command did not arrive in time; the command is killed",
    )
}

/// Run a command
///
/// Runs a command in a running environment and answers when it has ended. A command that fails
/// is answered with 200 too: see `exit_code`. If the client disconnects, the command is killed.
/// Processes that a command leaves in the background keep running; their later output is dropped.
///
/// With `Accept: text/event-stream` the output is streamed without a limit, as server-sent events:
/// `stdout` and `stderr` (an `ExecOutputEvent`), and at last `exit` (an `ExecExitEvent`) or `error`
/// (an `ErrorBody`). The stream begins when the command has started, also if it prints nothing. The command
/// waits for a client that reads slowly.
///
/// As `multipart/form-data` stdin has any size: the part `exec` with the JSON, then the part `stdin`. This
/// cannot be combined with server-sent events.
#[utoipa::path(post, operation_id = "execInEnvironment", path = "/environments/{id}/exec", tag = "exec",
    params(EnvironmentParameter),
    request_body(content((ExecBody = "application/json"), (ExecForm = "multipart/form-data"))),
    responses((status = 200, description = "The result of the command, or a stream of server-sent events.",
        content((ExecReply = "application/json"),
            (String = "text/event-stream", example = "event: stdout\ndata: {\"data\":\"42\\n\"}\n\nevent: exit\ndata: {\"exit_code\":0,\"duration_ms\":31,\"timed_out\":false}\n\n")))))]
pub(crate) async fn exec(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    request: Request,
) -> Answer<Response> {
    let is_streamed = wants_events(request.headers());
    let (body, part) = body::read(&gateway, &principal.user, request).await?;
    if is_streamed && part.is_some() {
        return Err(Error::field(
            "Accept",
            "must not be `text/event-stream` with a body of `multipart/form-data`",
        )
        .into());
    }
    let timeout = request::check(&body, gateway.config.max_exec_timeout_s)?;
    let location = location.require_running()?;
    // A request beyond a limit has no entry in the audit trail.
    let session = gateway.begin_session(&principal, session_kind(is_streamed))?;
    let memory = ResultMemory::reserve(&gateway.results, &principal.user)?;
    let stdin = body.stdin.as_ref().or(body.stdin_base64.as_ref());
    let buffer = if part.is_some() { FORM_BUFFER } else { 0 };
    let size = stdin.map_or(buffer, String::len) + command_size(&body.command, body.env.iter());
    let held = InputMemory::reserve(&gateway.results, &principal.user, size)?;
    let encoding = body.output_encoding;
    let mut command = request::command(body, timeout, gateway.config.max_exec_output_bytes)?;
    let words = &command.request.command;
    audit::accept(&gateway, AuditAction::Exec, &location.id, words).await?;
    command.request.stream = is_streamed;
    command.request.stdin_follows |= part.is_some();
    let input = Input::new(command.stdin.take(), part, held);
    let within = timeout + ANSWER_GRACE;
    if is_streamed {
        // Output is not collected.
        drop(memory);
        let events = events::Events::start(
            &gateway,
            &location,
            command.request,
            input,
            encoding,
            within,
        )
        .await?;
        let grant = StreamGrant::environment(Action::Exec, &location);
        return Ok(sse::answer(
            "exec", gateway, principal, grant, session, events,
        ));
    }
    let running = run::run(&gateway, &location, command.request, input, memory);
    let outcome = tokio::time::timeout(within, running)
        .await
        .map_err(|_| overdue())?;
    match outcome {
        Ok(collected) => Ok(answer::response(&gateway, session, collected, encoding)),
        Err(error) => Err(box_loss::with_reason(&gateway, &location.id, error)
            .await
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_output_reserves_what_waits_for_its_client() {
        let waiting = agentbox_bus::SESSION_WINDOW * MAX_CHUNK;
        assert!(session_kind(true).bytes() > waiting as u64);
        assert_eq!(session_kind(false), SessionKind::Exec);
    }

    #[test]
    fn events_are_sent_to_clients_that_ask_for_them() {
        let with = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_events(&headers)
        };
        assert!(!wants_events(&HeaderMap::new()));
        assert!(with("text/event-stream"));
        assert!(with("application/json;q=0.5, Text/Event-Stream;q=1"));
        assert!(!with("application/json"));
        assert!(!with("*/*"));
    }
}
