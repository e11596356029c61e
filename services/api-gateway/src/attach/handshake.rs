//! The way from a request to attach to its open socket, which both routes share.
//!
//! [`Handshake::read`] checks the request, [`Handshake::accept`] takes the user's share and stores the
//! audit entry, and [`Accepted::attach`] attaches to the execution and answers.

use std::time::Duration;

use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{TerminalSize, ToBox};
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{AttachExecution, Attached};
use agentbox_contracts::identity::Principal;
use axum::extract::Extension;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::HeaderMap;
use axum::response::Response;
use tracing::Instrument;

use super::pump::Terminal;
use crate::audit;
use crate::authorize::Action;
use crate::box_loss;
use crate::box_session::BoxSession;
use crate::edge::cors;
use crate::edge::slots::Slot;
use crate::executions::session;
use crate::lookup::EnvironmentLocation;
use crate::memory::SessionKind;
use crate::principal::credential::subprotocols;
use crate::state::{Gateway, OpenSession};
use crate::stream::{AccessWatch, StreamGrant};

/// The largest message, and the largest frame, from the client, in bytes.
pub(crate) const MAX_MESSAGE: usize = 256 * 1024;
/// Bytes that are collected before they are written to the socket.
const WRITE_BUFFER: usize = 64 * 1024;
/// Bytes that may wait for the socket. One message to the client is smaller: 32 KiB of output, each
/// byte of which JSON may escape as six.
pub(crate) const MAX_WRITE_BUFFER: usize = 256 * 1024;
/// Bytes that are read from the socket at once.
const READ_BUFFER: usize = 16 * 1024;
/// How long the box may take to attach to the command.
const ATTACH_DEADLINE: Duration = Duration::from_secs(10);

/// The route of a request to attach.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Starts or resumes a terminal, which ends with its socket.
    Terminal,
    /// Attaches to an execution, which outlives the socket.
    Execution,
}

impl Route {
    const fn action(self) -> Action {
        match self {
            Self::Terminal => Action::Attach,
            Self::Execution => Action::AttachExecution,
        }
    }

    const fn audit_action(self) -> AuditAction {
        match self {
            Self::Terminal => AuditAction::Attach,
            Self::Execution => AuditAction::AttachExecution,
        }
    }
}

/// A WebSocket handshake, except its answer.
pub(super) struct Handshake {
    upgrade: WebSocketUpgrade,
    slot: Option<Slot>,
}

impl Handshake {
    /// # Errors
    /// [`ErrorCode::Forbidden`] for a page of another origin; [`ErrorCode::BadRequest`] for a request that
    /// is no handshake.
    pub(super) fn read(
        gateway: &Gateway,
        headers: &HeaderMap,
        slot: Option<Extension<Slot>>,
        upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    ) -> Result<Self, Error> {
        cors::check_origin(headers, &gateway.config.cors_origins)?;
        let upgrade = upgrade.map_err(|error| {
            Error::new(
                ErrorCode::BadRequest,
                format!("not a WebSocket handshake: {}", error.body_text()),
            )
        })?;
        let upgrade = upgrade
            .max_message_size(MAX_MESSAGE)
            .max_frame_size(MAX_MESSAGE)
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_write_buffer_size(MAX_WRITE_BUFFER)
            .protocols(subprotocols(headers)?.answer);
        let slot = slot.map(|Extension(slot)| slot);
        Ok(Self { upgrade, slot })
    }

    /// Accepts the request of `principal`, of which the audit trail gets `command`.
    ///
    /// # Errors
    /// When the environment does not run, a bound of sessions is reached, or the entry is not stored.
    pub(super) async fn accept(
        self,
        gateway: Gateway,
        principal: Principal,
        location: EnvironmentLocation,
        route: Route,
        command: &[String],
    ) -> Result<Accepted, Error> {
        let location = location.require_running()?;
        let share = gateway.begin_session(&principal, SessionKind::Attach)?;
        audit::accept(&gateway, route.audit_action(), &location.id, command).await?;
        Ok(Accepted {
            gateway,
            principal,
            location,
            share,
            route,
            handshake: self,
        })
    }
}

/// An accepted request to attach.
pub(super) struct Accepted {
    pub gateway: Gateway,
    pub location: EnvironmentLocation,
    principal: Principal,
    share: OpenSession,
    route: Route,
    handshake: Handshake,
}

impl Accepted {
    /// Attaches to an execution and sends it `size`, that of the client's terminal. Then answers the
    /// handshake, and serves the socket.
    ///
    /// # Errors
    /// The error of the box, or the reason of its loss.
    pub(super) async fn attach(
        self,
        request: AttachExecution,
        size: Option<TerminalSize>,
        is_binary: bool,
    ) -> Result<Response, Error> {
        let Self {
            gateway,
            location,
            principal,
            share,
            route,
            handshake: Handshake { upgrade, slot },
        } = self;
        let (session, attached) = match connect(&gateway, &location, request, size).await {
            Ok(connected) => connected,
            Err(error) => return Err(box_loss::with_reason(&gateway, &location.id, error).await),
        };
        let grant = StreamGrant::environment(route.action(), &location);
        let stop = gateway.shutdown.clone();
        let sockets = gateway.sockets.clone();
        let terminal = Terminal {
            access: AccessWatch::new(gateway.clone(), principal, grant, stop),
            gateway,
            location,
            session,
            attached,
            is_binary,
            is_owned: route == Route::Terminal,
            slot,
            share,
        };
        let span = tracing::Span::current();
        Ok(upgrade.on_upgrade(move |socket| {
            // Tracked, so that a stopping gateway waits for the close handshake.
            sockets.track_future(terminal.serve(socket).instrument(span))
        }))
    }
}

async fn connect(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    request: AttachExecution,
    size: Option<TerminalSize>,
) -> Result<(BoxSession, Attached), Error> {
    let mut session = session::open(gateway, location, Operation::Attach(request)).await?;
    let first = tokio::time::timeout(ATTACH_DEADLINE, session.recv())
        .await
        .map_err(|_| Error::new(ErrorCode::Timeout, "the command did not answer in time"))??;
    let Output::Attached(attached) = session::output(first)? else {
        return Err(Error::internal());
    };
    if let Some(size) = size {
        session.send(ToBox::Resize(size)).await?;
    }
    Ok((session, attached))
}
