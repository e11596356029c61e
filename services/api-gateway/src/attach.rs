//! `GET /environments/{id}/attach`: a terminal, or any command, over a WebSocket.
//!
//! * I1. The command has started before the handshake is answered: until then an error is
//!   an HTTP answer.
//! * I2. Backpressure is end to end: a client that does not read stops the command, and a
//!   command that does not read stops the client. The gateway holds one message in each
//!   direction, besides the buffers of the sockets.
//! * I3. When the command, the client, the credential or the gateway ends, the rest ends too:
//!   the session is dropped, and with it the command.
//!
//! Close codes: see [`close::Close`], and for clients [`attach`].

mod client_message;
mod close;
mod parameters;
mod protocol;
mod pump;

use std::time::Duration;

use agentbox_bus::Session;
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{AttachRequest, FromBox, Open, OpenKind, ToBox};
use agentbox_contracts::ids::ExecId;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use tracing::Instrument;

use crate::audit;
use crate::authorize::Action;
use crate::edge::Answer;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::cors;
use crate::edge::path::EnvironmentParameter;
use crate::edge::slots::Slot;
use crate::exec::OPEN_DEADLINE;
use crate::lookup::EnvironmentLocation;
use crate::memory::SessionKind;
use crate::principal::credential::subprotocols;
use crate::state::Gateway;
use crate::stream::{AccessWatch, StreamGrant};
use parameters::Parameters;
use pump::Terminal;

type AttachSession = Session<ToBox, FromBox>;

#[cfg(fuzzing)]
pub(crate) fn parse_frame(text: &str) -> Result<Vec<ToBox>, Error> {
    protocol::to_box(text)
}

/// The largest message, and the largest frame, from the client, in bytes.
pub(crate) const MAX_MESSAGE: usize = 256 * 1024;
/// Bytes that are collected before they are written to the socket.
const WRITE_BUFFER: usize = 64 * 1024;
/// Bytes that may wait for the socket. One message to the client is smaller: 32 KiB of output, each
/// byte of which JSON may escape as six.
pub(crate) const MAX_WRITE_BUFFER: usize = 256 * 1024;
/// Bytes that are read from the socket at once.
const READ_BUFFER: usize = 16 * 1024;
/// How long the box may take to start the command.
const START_DEADLINE: Duration = Duration::from_secs(10);

async fn start(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    parameters: &Parameters,
) -> Result<(AttachSession, ExecId), Error> {
    let open = Open {
        environment: location.id.clone(),
        owner: Some(location.owner.clone()),
        address: location.address,
        status: location.status,
        kind: OpenKind::Attach(AttachRequest {
            id: ExecId::random(),
            command: parameters.command.clone(),
            working_dir: parameters.working_dir.clone(),
            env: parameters.env.clone(),
            tty: parameters.tty,
        }),
    };
    let mut session: AttachSession = gateway
        .bus
        .open_session::<BoxSession>(&location.cluster, &open, OPEN_DEADLINE)
        .await?;
    let first = tokio::time::timeout(START_DEADLINE, session.recv())
        .await
        .map_err(|_| Error::new(ErrorCode::Timeout, "the command did not start in time"))??;
    match first {
        Some(FromBox::Started(id)) => Ok((session, id)),
        Some(_) => Err(Error::internal()),
        None => Err(Error::new(ErrorCode::BoxLost, "the command did not start")),
    }
}

/// Attach a terminal
///
/// Starts a command in a running environment and connects it to a WebSocket (RFC 6455). Text
/// frames are JSON: the client sends `ClientMessage`, the server sends `ServerMessage`. A binary
/// frame from the client is stdin. A browser sends its token as a WebSocket subprotocol
/// (`Authorization`, then the token), or a ticket. A page of another origin is refused (403), unless
/// the operator allows it (`AGENTBOX_CORS_ORIGINS`). The server sends a ping at least every 30
/// seconds (by default every 20; `AGENTBOX_PING_INTERVAL`).
///
/// Close codes:
///
/// * 1000: the command has ended. Its `exit` message came before.
/// * 1001: the server stops. Connect again.
/// * 1009: a message was larger than 256 KiB.
/// * 1011: a fault of the server.
/// * 4401: the credential is no longer valid, or no longer allows this.
/// * 4404: the environment is gone, or the caller may no longer see it.
/// * 4408: the client did not answer pings.
/// * 4409: the environment no longer runs: it was deleted, its lifetime is over, or its main
///   command has ended.
/// * 4502: the environment was lost while the command ran.
/// * 4503: a part of the system cannot be reached. Connect again.
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
    cors::check_origin(&headers, &gateway.config.cors_origins)?;
    let parameters = Parameters::read(query.as_deref().unwrap_or(""))?;
    let upgrade = upgrade.map_err(|error| {
        Error::new(
            ErrorCode::BadRequest,
            format!("not a WebSocket handshake: {}", error.body_text()),
        )
    })?;
    let protocol = subprotocols(&headers)?.answer;
    let location = location.require_running()?;
    let share = gateway.begin_session(&principal, SessionKind::Attach)?;
    let command = &parameters.command;
    audit::accept(&gateway, AuditAction::Attach, &location.id, command).await?;
    let (session, id) = start(&gateway, &location, &parameters).await?;
    let upgrade = upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .protocols(protocol);
    let grant = StreamGrant::environment(Action::Attach, &location);
    let terminal = Terminal {
        gateway: gateway.clone(),
        environment: location.id,
        session,
        id,
        access: AccessWatch::new(gateway.clone(), principal, grant, gateway.shutdown.clone()),
        is_binary: parameters.binary,
        slot: slot.map(|Extension(slot)| slot),
        share,
    };
    let span = tracing::Span::current();
    Ok(upgrade.on_upgrade(move |socket| {
        // Tracked, so that a stopping gateway waits for the close handshake.
        gateway
            .sockets
            .track_future(terminal.serve(socket).instrument(span))
    }))
}
