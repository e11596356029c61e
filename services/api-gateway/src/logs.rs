//! `GET /environments/{id}/logs`: the output of the main command, stored or followed.

mod follow;
mod lines;
mod page;
mod wait;

use agentbox_api::logs::{LogsQuery, LogsReply};
use agentbox_bus::Session;
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{FromBox, LogsRequest, Open, OpenKind, ToBox};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::authorize::Action;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::{Answer, Query};
use crate::exec::OPEN_DEADLINE;
use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;
use crate::stream::{StreamGrant, sse};

type LogsSession = Session<ToBox, FromBox>;

async fn open(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    request: LogsRequest,
) -> Result<LogsSession, Error> {
    let open = Open {
        environment: location.id.clone(),
        address: location.address,
        status: location.status,
        kind: OpenKind::Logs(request),
    };
    gateway
        .bus
        .open_session::<BoxSession>(&location.cluster, &open, OPEN_DEADLINE)
        .await
}

/// Without `follow`: what is kept, as JSON. With it: server-sent events, each with an id
/// to resume after; `event: gap` tells of lines that are no longer kept, `event: end`
/// that the environment has ended, `event: error` why the stream cannot go on.
#[utoipa::path(get, operation_id = "getEnvironmentLogs", path = "/api/v1/environments/{id}/logs", tag = "logs",
    params(("id" = String, Path, description = "The environment"), LogsQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "With follow: resume after this event")),
    responses((status = 200, description = "The lines; with follow=true a stream of server-sent events",
        content((LogsReply = "application/json"), (String = "text/event-stream")))))]
pub(crate) async fn logs(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let request = LogsRequest {
        from_sequence: None,
        tail: query.tail,
        since: query.since,
        follow: query.follow,
    };
    if !query.follow {
        let session = open(&gateway, &location, request).await?;
        return Ok(page::answer(session, query.timestamps).await?);
    }
    let last = sse::last_event_id(&headers)?;
    let grant = StreamGrant::environment(Action::ReadLogs, &location);
    let source = follow::Follower::new(gateway.clone(), location, request, last, query.timestamps);
    Ok(sse::answer("logs", gateway, principal, grant, source))
}
