//! `GET /environments/{id}/logs`: the output of the main command, stored or followed.

mod follow;
mod page;
mod wait;

use agentbox_api::logs::{LogsQuery, LogsReply};
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::exec::{LogsRequest, OpenKind};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::audit;
use crate::authorize::Action;
use crate::box_session;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::{Answer, Query};
use crate::memory::SessionKind;
use crate::state::Gateway;
use crate::stream::{StreamGrant, sse};

/// Read or follow the logs
///
/// Returns the kept output of the main command. With `follow=true` the answer is a stream of
/// server-sent events: one `LogLine` in each, with an `id` to resume after. Three other events may
/// occur: `gap` (lines that were asked for are no longer kept: `{"lost": 12}`, as in `LogsReply`),
/// `end` (the environment has ended) and `error` (the stream cannot continue, with an `ErrorBody`).
#[utoipa::path(get, operation_id = "getEnvironmentLogs", path = "/environments/{id}/logs", tag = "logs",
    params(EnvironmentParameter, LogsQuery,
        ("Last-Event-ID" = Option<u64>, Header, example = 4711,
            description = "With `follow`: the `id` of the last event that the client has. The stream continues after it.")),
    responses((status = 200, description = "The kept lines, oldest first; with `follow=true` a stream of server-sent events.",
        content((LogsReply = "application/json"),
            (String = "text/event-stream", example = "id: 1\ndata: {\"timestamp\":\"2026-01-22T10:00:02.125Z\",\"stream\":\"stdout\",\"message\":\"listening on 8080\"}\n\n")))))]
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
    let last = match query.follow {
        true => sse::last_event_id(&headers)?,
        false => None,
    };
    // A request beyond the limit has no entry in the audit trail.
    let share = gateway.begin_session(&principal, SessionKind::Logs)?;
    // Before the first read, and once for a stream, however often it reconnects to the box.
    audit::accept(&gateway, AuditAction::ReadLogs, &location.id, &[]).await?;
    if !query.follow {
        let session = box_session::open(&gateway, &location, OpenKind::Logs(request)).await?;
        return Ok(page::answer(session, share, query.timestamps).await?);
    }
    let grant = StreamGrant::environment(Action::ReadLogs, &location);
    let source = follow::Follower::new(gateway.clone(), location, request, last, query.timestamps);
    Ok(sse::answer(
        "logs", gateway, principal, grant, share, source,
    ))
}
