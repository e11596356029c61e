//! Environment events: what has happened, and what happens.
//!
//! * I1. They live in the event stream alone; an event's id is its place there, so that
//!   every gateway resumes alike.
//! * I2. A caller is shown the events of what its lists show, and no other.

mod follow;
mod stored;

use std::time::Duration;

use agentbox_api::event::{EventBody, EventList, EventsQuery};
use agentbox_bus::{BusError, StoredEvent};
use agentbox_contracts::environment::{EnvironmentEvent, Visibility};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::subjects;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::authorize::{Action, visibility};
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::query::page;
use crate::edge::{Answer, Query};
use crate::state::Gateway;
use crate::stream::{StreamGrant, sse};
use follow::Follower;

/// How long the event stream may take to answer a question, or to replay what it has.
const DEADLINE: Duration = Duration::from_secs(10);

fn unavailable(error: &BusError) -> Error {
    tracing::warn!(%error, "events cannot be read");
    Error::new(
        ErrorCode::Unavailable,
        "the events cannot be read now; try again",
    )
}

fn sees(visibility: &Visibility, event: &EnvironmentEvent) -> bool {
    match visibility {
        Visibility::All => true,
        Visibility::Owner(owner) => event.owner == *owner,
        Visibility::Listed { owner, only } => {
            event.owner == *owner && only.contains(&event.environment_id)
        }
    }
}

/// Whether the events of an environment that has ended are all there: the last one is
/// published a moment after it has happened. What has none left has outlived them.
fn is_whole(past: &[StoredEvent]) -> bool {
    past.last()
        .is_none_or(|stored| stored.event.status.is_ended())
}

fn list(stored: Vec<StoredEvent>, query: &EventsQuery) -> Result<Response, Error> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let total = stored.len() as u64;
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let events = stored
        .into_iter()
        .rev()
        .skip(skip)
        .take(limit as usize)
        .map(|stored| EventBody::new(stored.sequence, stored.event))
        .collect();
    Ok(axum::Json(EventList {
        events,
        total,
        limit,
        offset,
    })
    .into_response())
}

/// List or follow the events of an environment
///
/// Returns one page of the kept events, newest first. With `follow=true` the answer is a stream
/// of server-sent events, oldest first: the kept ones, then new ones as they happen. The event
/// `end` follows the last one.
#[utoipa::path(get, operation_id = "listEnvironmentEvents", path = "/environments/{id}/events", tag = "events",
    params(EnvironmentParameter, EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, example = 4711,
            description = "With `follow`: the `id` of the last event that the client has. The stream goes on after it.")),
    responses((status = 200, description = "One page of events; with `follow=true` a stream of server-sent events.",
        content((EventList = "application/json"), (String = "text/event-stream", example = "id: 4711\ndata: {\"id\":4711,\"environment_id\":\"env-0123456789abcdef\",\"kind\":\"running\",\"status\":\"running\",\"at\":\"2026-01-22T10:00:01Z\"}\n\n")))))]
pub(crate) async fn of_one(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let filter = subjects::environment_events(&location.id);
    // Whoever may see the environment may see all that happened to it.
    let seen = Visibility::All;
    if !query.follow {
        page(query.limit, query.offset)?;
        return Ok(list(
            stored::matching(&gateway, &filter, &seen).await?,
            &query,
        )?);
    }
    let last = sse::last_event_id(&headers)?;
    let grant = StreamGrant::environment(Action::ViewEnvironment, &location);
    let past = if location.status.is_ended() {
        Some(stored::matching(&gateway, &filter, &seen).await?)
    } else {
        None
    };
    let source = match past {
        Some(past) if is_whole(&past) => Follower::of_the_past(past, last),
        _ => {
            let from = last.map_or(0, |last| last.saturating_add(1));
            Follower::of_one(stored::from(&gateway, filter, from).await?, last, seen)
        }
    };
    Ok(sse::answer("events", gateway, principal, grant, source))
}

/// List or follow the events of all environments
///
/// Returns one page of the kept events of every environment that the caller may see, newest
/// first. With `follow=true` the answer is a stream of server-sent events: new ones as they
/// happen, or all after `Last-Event-ID`.
#[utoipa::path(get, operation_id = "listEvents", path = "/events", tag = "events",
    params(EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, example = 4711,
            description = "With `follow`: the `id` of the last event that the client has. The stream goes on after it.")),
    responses((status = 200, description = "One page of events; with `follow=true` a stream of server-sent events.",
        content((EventList = "application/json"), (String = "text/event-stream", example = "id: 4711\ndata: {\"id\":4711,\"environment_id\":\"env-0123456789abcdef\",\"kind\":\"running\",\"status\":\"running\",\"at\":\"2026-01-22T10:00:01Z\"}\n\n")))))]
pub(crate) async fn of_all(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let seen = visibility(&principal);
    let filter = subjects::ALL_EVENTS;
    if !query.follow {
        page(query.limit, query.offset)?;
        return Ok(list(
            stored::matching(&gateway, filter, &seen).await?,
            &query,
        )?);
    }
    let last = sse::last_event_id(&headers)?;
    let bounds = stored::bounds(&gateway).await?;
    let from = last.unwrap_or(bounds.last).saturating_add(1);
    let gap = bounds.gap_before(from);
    let stream = stored::from(&gateway, filter.to_owned(), from).await?;
    let grant = StreamGrant::Listing(seen.clone());
    let source = Follower::of_all(stream, last, seen, gap);
    Ok(sse::answer("events", gateway, principal, grant, source))
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::environment::{EventKind, Status};
    use agentbox_contracts::ids::{EnvironmentId, UserId};
    use chrono::Utc;

    use super::*;

    fn event(owner: &UserId, id: &EnvironmentId, status: Status) -> EnvironmentEvent {
        EnvironmentEvent {
            environment_id: id.clone(),
            owner: owner.clone(),
            kind: EventKind::Updated,
            status,
            status_reason: None,
            status_message: None,
            exit_code: None,
            at: Utc::now(),
        }
    }

    #[test]
    fn the_past_is_whole_when_it_tells_its_end_or_is_forgotten() {
        let stored = |status| StoredEvent {
            sequence: 1,
            event: event(&UserId::random(), &EnvironmentId::random(), status),
            pending: 0,
        };
        assert!(is_whole(&[]));
        assert!(!is_whole(&[stored(Status::Running)]));
        assert!(is_whole(&[
            stored(Status::Running),
            stored(Status::Terminated)
        ]));
    }

    #[test]
    fn a_caller_is_shown_the_events_of_what_its_lists_show() {
        let (owner, other) = (UserId::random(), UserId::random());
        let id = EnvironmentId::random();
        let event = event(&owner, &id, Status::Running);
        let listed = |owner: &UserId, only: &[&EnvironmentId]| Visibility::Listed {
            owner: owner.clone(),
            only: only.iter().copied().cloned().collect(),
        };
        assert!(sees(&Visibility::All, &event));
        assert!(sees(&Visibility::Owner(owner.clone()), &event));
        assert!(!sees(&Visibility::Owner(other.clone()), &event));
        assert!(sees(&listed(&owner, &[&id]), &event));
        assert!(!sees(&listed(&owner, &[]), &event));
        assert!(!sees(&listed(&other, &[&id]), &event));
    }
}
