//! Environment events: what has happened, and what happens now.

use std::time::Duration;

use agentbox_api::error::ErrorBody;
use agentbox_api::event::{EventBody, EventList, EventsQuery};
use agentbox_bus::{EventStream, StoredEvent};
use agentbox_contracts::environment::Visibility;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;

use crate::authorize::{Action, authorize, visibility};
use crate::edge::input::page;
use crate::edge::{Answer, Caller, Path, Query};
use crate::lookup;
use crate::state::Gateway;
use crate::stream::{Events, last_event_id, sse};

/// How long reading what is stored may take.
const REPLAY_DEADLINE: Duration = Duration::from_secs(10);

fn unavailable(error: &agentbox_bus::BusError) -> Error {
    tracing::warn!(%error, "events cannot be read");
    Error::new(
        ErrorCode::Unavailable,
        "the events cannot be read now; try again",
    )
}

fn sees(visibility: &Visibility, stored: &StoredEvent) -> bool {
    match visibility {
        Visibility::All => true,
        Visibility::Owner(owner) => stored.event.owner == *owner,
        Visibility::Listed { only, .. } => only.contains(&stored.event.environment_id),
    }
}

async fn stored(
    gateway: &Gateway,
    filter: &str,
    seen: &Visibility,
) -> Result<Vec<EventBody>, Error> {
    if !gateway
        .bus
        .has_events(filter)
        .await
        .map_err(|error| unavailable(&error))?
    {
        return Ok(Vec::new());
    }
    let mut stream = gateway
        .bus
        .events(filter.to_owned(), 0)
        .await
        .map_err(|error| unavailable(&error))?;
    let mut all = Vec::new();
    while let Some(next) = stream.next().await {
        let stored = next.map_err(|error| unavailable(&error))?;
        let last = stored.pending == 0;
        if sees(seen, &stored) {
            all.push(EventBody::new(stored.sequence, stored.event));
        }
        if last {
            break;
        }
    }
    Ok(all)
}

async fn follow(mut stream: EventStream, events: Events, seen: Visibility) -> Result<(), Error> {
    while let Some(next) = stream.next().await {
        let stored = next.map_err(|error| unavailable(&error))?;
        if !sees(&seen, &stored) {
            continue;
        }
        let body = EventBody::new(stored.sequence, stored.event);
        let event = Event::default()
            .id(body.id.to_string())
            .data(serde_json::to_string(&body).unwrap_or_default());
        if events.send(event).await.is_err() {
            return Ok(());
        }
    }
    Err(Error::new(
        ErrorCode::Unavailable,
        "the events broke off; connect again with Last-Event-ID",
    ))
}

async fn answer(
    gateway: Gateway,
    principal: Principal,
    filter: String,
    seen: Visibility,
    query: &EventsQuery,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    if query.follow {
        let from = last_event_id(headers)?.map_or(0, |last| last.saturating_add(1));
        let stream = gateway
            .bus
            .events(filter, from)
            .await
            .map_err(|error| unavailable(&error))?;
        return Ok(sse(gateway, principal, move |events| {
            follow(stream, events, seen)
        }));
    }
    let (limit, offset) = page(query.limit, query.offset)?;
    let mut all = tokio::time::timeout(REPLAY_DEADLINE, stored(&gateway, &filter, &seen))
        .await
        .map_err(|_| Error::new(ErrorCode::Timeout, "reading the events took too long"))??;
    all.reverse();
    let total = all.len() as u64;
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let events = all.into_iter().skip(skip).take(limit as usize).collect();
    Ok(axum::Json(EventList {
        events,
        total,
        limit,
        offset,
    })
    .into_response())
}

#[utoipa::path(get, path = "/api/v1/environments/{id}/events", tag = "events",
    params(("id" = String, Path), EventsQuery),
    responses((status = 200, body = EventList, description = "With follow=true: text/event-stream"),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn of_one(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<EnvironmentId>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    lookup::environment(&gateway, &principal, Action::ViewEnvironment, &id).await?;
    let filter = subjects::events_of(&id);
    Ok(answer(
        gateway,
        principal,
        filter,
        Visibility::All,
        &query,
        &headers,
    )
    .await?)
}

#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(EventsQuery),
    responses((status = 200, body = EventList, description = "With follow=true: text/event-stream"),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn of_all(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    authorize(&principal, Action::ListEnvironments, None)?;
    let seen = visibility(&principal);
    let filter = subjects::ALL_EVENTS.to_owned();
    Ok(answer(gateway, principal, filter, seen, &query, &headers).await?)
}
