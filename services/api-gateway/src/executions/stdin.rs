//! `POST …/stdin`: streams the body of a request to the stdin of an execution.
//!
//! * I1. No more of the body is read than the window of the session holds: a command that does not read
//!   its stdin stops the client.
//! * I2. If the body is incomplete, what has arrived was written, and stdin stays open.

use std::time::Duration;

use agentbox_api::execution::StdinQuery;
use agentbox_bus::SessionSender;
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::ToBox;
use agentbox_contracts::executions::WriteStdin;
use agentbox_contracts::executions::execution_request::Operation;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use http_body_util::BodyExt;
use tokio::time::{sleep, timeout};

use super::session;
use crate::audit;
use crate::authorize::Action;
use crate::box_loss;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::{EnvironmentParameter, ExecutionId, ExecutionParameter};
use crate::edge::{Answer, Query};
use crate::exec::stdin_messages;
use crate::memory::SessionKind;
use crate::state::Gateway;
use crate::stream::{AccessWatch, StreamEnd, StreamGrant};

/// How long the command may take to read what the session holds.
const READ_DEADLINE: Duration = Duration::from_secs(600);

fn unread() -> Error {
    Error::new(
        ErrorCode::Timeout,
        format!(
            "the command did not read its stdin for {} seconds",
            READ_DEADLINE.as_secs()
        ),
    )
}

/// Sends a message. When the session has ended, its other half receives the reason.
async fn send(to_box: &mut SessionSender<ToBox>, message: ToBox) -> Result<(), Error> {
    match timeout(READ_DEADLINE, to_box.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => std::future::pending().await,
        Err(_) => Err(unread()),
    }
}

/// Sends the body. Returns only with an error: the other half receives the answer. The next part of the
/// body must arrive within `idle`.
async fn feed(to_box: &mut SessionSender<ToBox>, body: Body, idle: Duration) -> Error {
    match forward(to_box, body, idle).await {
        Err(error) => error,
        Ok(()) => {
            sleep(READ_DEADLINE).await;
            unread()
        }
    }
}

async fn forward(
    to_box: &mut SessionSender<ToBox>,
    mut body: Body,
    idle: Duration,
) -> Result<(), Error> {
    loop {
        let frame = timeout(idle, body.frame()).await.map_err(|_| {
            Error::new(
                ErrorCode::RequestTimeout,
                format!(
                    "a part of the body must arrive every {} seconds, did not",
                    idle.as_secs()
                ),
            )
        })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| {
            Error::new(
                ErrorCode::BadRequest,
                "the connection ended before the body was complete",
            )
        })?;
        if let Ok(data) = frame.into_data() {
            for message in stdin_messages(data) {
                send(to_box, message).await?;
            }
        }
    }
    send(to_box, ToBox::End).await
}

fn ended(end: StreamEnd) -> Error {
    match end {
        StreamEnd::Refused(error) => error,
        StreamEnd::Stopping => Error::new(
            ErrorCode::Unavailable,
            "the gateway stops; a part of the body was written",
        ),
    }
}

/// Write to stdin
///
/// Writes the body, byte for byte, to the stdin of an execution that was started with `open`. The answer
/// comes when all of it was written. The body is streamed: it may have any size, and waits for the
/// command to read. An execution that has ended, or has no open stdin, is a conflict.
#[utoipa::path(post, operation_id = "writeStdin", path = "/environments/{id}/executions/{execution}/stdin", tag = "executions",
    params(EnvironmentParameter, ExecutionParameter, StdinQuery),
    request_body(content = String, content_type = "application/octet-stream", example = "some input\n"),
    responses((status = 204, description = "The body was written.")))]
pub(crate) async fn write(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    ExecutionId(id): ExecutionId,
    Query(query): Query<StdinQuery>,
    body: Body,
) -> Answer<StatusCode> {
    let location = location.require_running()?;
    let _share = gateway.begin_session(&principal, SessionKind::Input)?;
    audit::accept(&gateway, AuditAction::ControlExecution, &location.id, &[]).await?;
    let operation = Operation::Stdin(WriteStdin {
        id: id.to_string(),
        close: query.close,
    });
    let session = session::open(&gateway, &location, operation).await?;
    let (mut to_box, mut from_box) = session.split();
    let grant = StreamGrant::environment(Action::ControlExecution, &location);
    let stop = gateway.shutdown.clone();
    let mut access = AccessWatch::new(gateway.clone(), principal, grant, stop);
    let idle = gateway.config.body_timeout();
    let outcome = tokio::select! {
        message = from_box.recv() => message.and_then(session::execution),
        refused = feed(&mut to_box, body, idle) => Err(refused),
        end = access.ended() => Err(ended(end)),
    };
    match outcome {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(box_loss::with_reason(&gateway, &location.id, error)
            .await
            .into()),
    }
}
