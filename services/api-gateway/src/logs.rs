//! `GET /environments/{id}/logs`: the main command's output, at once or as it comes.

use agentbox_api::error::ErrorBody;
use agentbox_api::logs::{LogLine, LogsQuery, LogsReply};
use agentbox_bus::Session;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, LogsRequest, OPEN, Open, OpenKind, ToBox};
use agentbox_contracts::identity::TicketAction;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use agentbox_contracts::subjects;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};

use crate::authorize::Action;
use crate::edge::admit::MaybeCaller;
use crate::edge::{Answer, Path, Query};
use crate::exec::OPEN_DEADLINE;
use crate::lookup::{self, Place};
use crate::principal::{redeem, unauthorized};
use crate::state::Gateway;
use crate::stream::{Events, Gone, last_event_id, sse};

/// All of an answer without `follow` is held at once: what a box keeps, and a little more.
const MAX_ENTRIES: usize = 1_000_000;

async fn open(
    gateway: &Gateway,
    id: &EnvironmentId,
    place: Place,
    request: LogsRequest,
) -> Result<Session<ToBox, FromBox>, Error> {
    let open = Open {
        environment: id.clone(),
        address: place.address,
        status: place.status,
        kind: OpenKind::Logs(request),
    };
    gateway
        .bus
        .open_session(
            subjects::exec_rpc(&place.cluster, OPEN),
            &open,
            OPEN_DEADLINE,
        )
        .await
}

/// All entries, and how many older ones are no longer kept.
async fn collect(mut session: Session<ToBox, FromBox>) -> Result<(Vec<LogEntry>, u64), Error> {
    let (mut all, mut lost) = (Vec::new(), 0);
    while let Some(message) = session.recv().await? {
        match message {
            FromBox::Logs(entries) => all.extend(entries),
            FromBox::LogsLost(count) => lost += count,
            FromBox::LogsEnd { .. } => return Ok((all, lost)),
            _ => return Err(Error::internal()),
        }
        if all.len() > MAX_ENTRIES {
            return Err(Error::new(
                ErrorCode::PayloadTooLarge,
                "too many lines: use tail or follow",
            ));
        }
    }
    Err(Error::new(ErrorCode::BoxLost, "the logs broke off"))
}

fn line(entry: &LogEntry, timestamps: bool) -> LogLine {
    LogLine::new(
        entry,
        String::from_utf8_lossy(&entry.line).into_owned(),
        timestamps,
    )
}

fn line_event(entry: &LogEntry, timestamps: bool) -> Event {
    let data = serde_json::to_string(&line(entry, timestamps)).unwrap_or_default();
    Event::default().id(entry.sequence.to_string()).data(data)
}

async fn follow(
    mut session: Session<ToBox, FromBox>,
    events: Events,
    timestamps: bool,
) -> Result<(), Error> {
    while let Some(message) = session.recv().await? {
        let sent = match message {
            FromBox::Logs(entries) => {
                let mut sent = Ok(());
                for entry in &entries {
                    sent = events.send(line_event(entry, timestamps)).await;
                    if sent.is_err() {
                        break;
                    }
                }
                sent
            }
            FromBox::LogsLost(lost) => {
                events
                    .send(
                        Event::default()
                            .event("gap")
                            .data(format!("{{\"lost\":{lost}}}")),
                    )
                    .await
            }
            FromBox::LogsEnd { .. } => {
                let _ = events.send(Event::default().event("end").data("{}")).await;
                return Ok(());
            }
            _ => return Err(Error::internal()),
        };
        if let Err(Gone) = sent {
            return Ok(());
        }
    }
    Err(Error::new(
        ErrorCode::BoxLost,
        "the logs broke off; connect again with Last-Event-ID",
    ))
}

#[utoipa::path(get, path = "/api/v1/environments/{id}/logs", tag = "logs",
    params(("id" = String, Path), LogsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "With follow: go on after this event")),
    responses((status = 200, body = LogsReply, description = "With follow=true: text/event-stream"),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn logs(
    State(gateway): State<Gateway>,
    MaybeCaller(caller): MaybeCaller,
    Path(id): Path<EnvironmentId>,
    Query(query): Query<LogsQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let principal = match (caller, query.ticket) {
        (Some(principal), _) => principal,
        (None, Some(ticket)) => redeem(&gateway, ticket, id.clone(), TicketAction::Logs).await?,
        (None, None) => return Err(unauthorized("a token or a ticket is needed").into()),
    };
    let place = lookup::any(&gateway, &principal, Action::ReadLogs, &id).await?;
    let resume = if query.follow {
        last_event_id(&headers)?
    } else {
        None
    };
    let request = LogsRequest {
        from_sequence: resume.map(|last| last.saturating_add(1)),
        tail: query.tail.filter(|_| resume.is_none()),
        since: query.since,
        follow: query.follow,
    };
    let session = open(&gateway, &id, place, request).await?;
    if query.follow {
        let timestamps = query.timestamps;
        return Ok(sse(gateway, principal, move |events| {
            follow(session, events, timestamps)
        }));
    }
    let (entries, lost) = collect(session).await?;
    let logs = entries
        .iter()
        .map(|entry| line(entry, query.timestamps))
        .collect();
    Ok(axum::Json(LogsReply {
        logs,
        lost: (lost > 0).then_some(lost),
    })
    .into_response())
}
