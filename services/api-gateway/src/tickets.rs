//! `/auth/tickets`: single-use credentials for browsers, whose EventSource and WebSocket
//! send no headers.

use agentbox_api::user::{CreateTicket, TicketReply};
use agentbox_contracts::identity::{TicketAction, rpc};
use axum::extract::State;
use axum::http::StatusCode;

use crate::authorize::Action;
use crate::edge::{Answer, Caller, Json};
use crate::lookup;
use crate::state::{AUTH_DEADLINE, Gateway};

/// Create a ticket
///
/// A ticket replaces the Authorization header where a browser cannot send one: append
/// `?ticket=<ticket>` to the URL of the logs or of the terminal. It is valid once, within 60
/// seconds, for the environment and the action it was created for. The operator may choose a
/// shorter time (`AGENTBOX_TICKET_TTL`).
#[utoipa::path(post, operation_id = "createTicket", path = "/auth/tickets", tag = "auth", request_body = CreateTicket,
    responses((status = 201, description = "The ticket.", body = TicketReply)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<CreateTicket>,
) -> Answer<(StatusCode, axum::Json<TicketReply>)> {
    let action = match body.action {
        TicketAction::Logs => Action::TicketForLogs,
        TicketAction::Attach => Action::TicketForAttach,
    };
    let location = lookup::resolve(&gateway, &principal, action, &body.environment_id).await?;
    let request = rpc::TicketRequest {
        principal,
        environment: location.id,
        action: body.action,
    };
    let reply = gateway
        .bus
        .call::<rpc::IssueTicket>(&request, AUTH_DEADLINE)
        .await?;
    let body = TicketReply {
        ticket: reply.ticket.0,
        expires_at: reply.expires_at,
    };
    Ok((StatusCode::CREATED, axum::Json(body)))
}
