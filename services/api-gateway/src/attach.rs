//! `GET /environments/{id}/attach`: a terminal, or any command, over a WebSocket; and
//! `GET …/executions/{execution}/attach`: the same messages for any execution.
//!
//! A terminal is an execution: the first route starts it, or resumes it by its id, and both attach to it.
//!
//! * I1. The command has started before the handshake is answered: until then an error is
//!   an HTTP answer.
//! * I2. Backpressure is end to end: a client that does not read stops the command, and a
//!   command that does not read stops the client. The gateway holds one message in each
//!   direction, besides the buffers of the sockets.
//! * I3. The command of a terminal ends with a socket that its client closes, and with the right to it. A
//!   connection that is lost, and a gateway that stops, leave it for [`RESUME_TIME`] ([`end::End`]). A
//!   socket of another execution ends nothing.
//!
//! Close codes: see [`close::Close`], and for clients [`attach`].

mod client_message;
mod close;
mod end;
mod handshake;
mod parameters;
mod protocol;
mod pump;

use std::time::Duration;

use agentbox_api::execution::AttachExecutionQuery;
use agentbox_contracts::exec::TerminalSize;
use agentbox_contracts::executions::{
    AttachExecution, ExecutionStart, Offsets, OnFull, Size, StdinMode,
};
use agentbox_contracts::ids::ExecId;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;

use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::{EnvironmentParameter, ExecutionId, ExecutionParameter};
use crate::edge::slots::Slot;
use crate::edge::{Answer, Query};
use crate::executions::parse_position;
use crate::executions::start;
use crate::state::Gateway;
use handshake::{Handshake, Route};
use parameters::{Parameters, Start, Target};

pub(crate) use handshake::{MAX_MESSAGE, MAX_WRITE_BUFFER};
pub(crate) use parameters::size as terminal_size;
pub(crate) use protocol::signal_name;
#[cfg(fuzzing)]
pub(crate) use protocol::to_box as parse_frame;

/// How long a terminal is left whose connection was lost, as the API promises it.
const RESUME_TIME: Duration = Duration::from_secs(60);
/// Added for the time until boxd notices the loss, and a new connection reaches it.
const RESUME_MARGIN: Duration = Duration::from_secs(5);

/// The execution of a terminal.
fn start_message(id: &ExecId, start: Start) -> ExecutionStart {
    let grace = (RESUME_TIME + RESUME_MARGIN).as_millis();
    ExecutionStart {
        id: id.to_string(),
        command: start.command,
        user: start.user.unwrap_or_default(),
        working_dir: start.working_dir.unwrap_or_default(),
        env: start.env.into_iter().collect(),
        stdin: StdinMode::Open.into(),
        tty: start.tty.map(box_size),
        on_full: OnFull::Block.into(),
        orphan_grace_ms: u64::try_from(grace).unwrap_or(u64::MAX),
        ..ExecutionStart::default()
    }
}

fn box_size(size: TerminalSize) -> Size {
    Size {
        cols: size.cols.into(),
        rows: size.rows.into(),
    }
}

/// Attach a terminal
///
/// Starts a command in a running environment and connects it to a WebSocket (RFC 6455), or resumes one.
/// Text frames are JSON: the client sends `ClientMessage`, the server sends `ServerMessage`. A binary
/// frame from the client is stdin. A browser sends its token as a WebSocket subprotocol
/// (`Authorization`, then the token), or a ticket. A page of another origin is refused (403), unless
/// the operator allows it (`AGENTBOX_CORS_ORIGINS`). The server sends a ping at least every 30
/// seconds (by default every 20; `AGENTBOX_PING_INTERVAL`).
///
/// The command is an execution, whose id is the `session_id`. It ends when its client closes the socket
/// with a close frame. When the connection is lost without one, it waits 60 seconds for a client that
/// resumes it with `session_id`.
///
/// Close codes:
///
/// * 1000: the command has ended. Its `exit` message came before.
/// * 1001: the server stops. Connect again, with `session_id`.
/// * 1009: a message was larger than 256 KiB.
/// * 1011: a fault of the server.
/// * 4401: the credential is no longer valid, or no longer allows this.
/// * 4404: the environment is gone, or the caller may no longer see it.
/// * 4408: the client did not answer pings.
/// * 4409: the environment no longer runs: it was deleted, its lifetime is over, or its main
///   command has ended.
/// * 4502: the environment was lost while the command ran.
/// * 4503: a part of the system cannot be reached. Connect again, with `session_id`.
#[utoipa::path(get, operation_id = "attachEnvironment", path = "/environments/{id}/attach", tag = "attach",
    params(EnvironmentParameter, Parameters),
    responses((status = 101, description = "The command has started, and the connection is a WebSocket.")))]
pub(crate) async fn attach(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    RawQuery(query): RawQuery,
    slot: Option<Extension<Slot>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let Parameters { target, binary } = Parameters::read(query.as_deref().unwrap_or(""))?;
    let handshake = Handshake::read(&gateway, &headers, slot, upgrade)?;
    let command: &[String] = match &target {
        Target::Start(start) => &start.command,
        Target::Resume(_) => &[],
    };
    let accepted = handshake
        .accept(gateway, principal, location, Route::Terminal, command)
        .await?;
    let (id, from, size) = match target {
        Target::Start(parameters) => {
            let id = ExecId::random();
            let message = start_message(&id, parameters);
            start::run(&accepted.gateway, &accepted.location, message).await?;
            // All output, from the start on.
            (id, Some(Offsets::default()), None)
        }
        Target::Resume(resume) => (resume.id, resume.from, resume.size),
    };
    let request = AttachExecution {
        id: id.to_string(),
        from,
        // The connection that was lost may still look open.
        take_input: true,
    };
    Ok(accepted.attach(request, size, binary).await?)
}

/// Attach to an execution
///
/// Connects a WebSocket (RFC 6455) to an execution, with the messages and close codes of
/// `attachEnvironment`. `ready` has the offsets at which the output begins. Several clients may attach:
/// one holds the input, the first one; `take_input` passes it on, and the client that held it receives
/// `input_taken`. The input of the others is dropped. A socket that ends, however it does, ends nothing.
/// The next client of a terminal gets its last screenful.
#[utoipa::path(get, operation_id = "attachExecution", path = "/environments/{id}/executions/{execution}/attach", tag = "executions",
    params(EnvironmentParameter, ExecutionParameter, AttachExecutionQuery),
    responses((status = 101, description = "The connection is a WebSocket, attached to the execution.")))]
#[allow(
    clippy::too_many_arguments,
    reason = "each is a part of the request that axum reads"
)]
pub(crate) async fn attach_execution(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    ExecutionId(id): ExecutionId,
    Query(query): Query<AttachExecutionQuery>,
    slot: Option<Extension<Slot>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let from = query.from.as_deref();
    let from = from.map(|text| parse_position("from", text)).transpose()?;
    let handshake = Handshake::read(&gateway, &headers, slot, upgrade)?;
    let accepted = handshake
        .accept(gateway, principal, location, Route::Execution, &[])
        .await?;
    let request = AttachExecution {
        id: id.to_string(),
        from,
        take_input: false,
    };
    Ok(accepted.attach(request, None, query.binary).await?)
}
