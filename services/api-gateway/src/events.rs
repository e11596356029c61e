//! `/events` and `/environments/{id}/events`: the events of environments, stored or followed.
//!
//! * I1. Events are stored in the event stream alone. The id of an event is its sequence there,
//!   so a client can resume at any gateway.
//! * I2. A caller sees the events of the environments that its lists show, and no others.

mod follow;
mod stored;

use std::time::Duration;

use agentbox_api::event::{EventBody, EventList, EventsQuery};
use agentbox_bus::{BusError, StoredEvent};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::{EnvironmentEvent, Visibility};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::subjects;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::authorize::{Action, visibility};
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::query::page;
use crate::edge::{Answer, Query};
use crate::memory::SessionKind;
use crate::state::Gateway;
use crate::stream::{StreamGrant, sse};
use follow::Follower;

/// How long the event stream may take to answer a request, or to replay the stored events.
const DEADLINE: Duration = Duration::from_secs(10);

/// Logs that the event stream could not be read, and returns the error for the caller.
fn report_unavailable(error: &BusError) -> Error {
    tracing::warn!(error = %ErrorChain(error), "the event stream could not be read");
    Error::new(
        ErrorCode::Unavailable,
        "the events cannot be read now; try again",
    )
}

/// The subjects of the events that a caller may see. A key that is limited to environments sees some
/// of them: [`is_visible`].
fn visible_subjects(visibility: &Visibility) -> String {
    match visibility {
        Visibility::All => subjects::ALL_EVENTS.to_owned(),
        Visibility::Owner(owner) | Visibility::Listed { owner, .. } => {
            subjects::owner_events(owner)
        }
    }
}

fn is_visible(visibility: &Visibility, event: &EnvironmentEvent) -> bool {
    match visibility {
        Visibility::All => true,
        Visibility::Owner(owner) => event.owner == *owner,
        Visibility::Listed { owner, only } => {
            event.owner == *owner && only.contains(&event.environment_id)
        }
    }
}

/// Whether the stored events of an ended environment are complete. The last event is published a
/// moment after the end. Without any event, the retention of the events is over.
fn is_complete(past: &[StoredEvent]) -> bool {
    past.last()
        .is_none_or(|stored| stored.event.status.is_ended())
}

/// One page of the stored events that match `filter`, newest first.
async fn list(
    gateway: &Gateway,
    user: &UserId,
    filter: &str,
    visible: &Visibility,
    query: &EventsQuery,
) -> Result<Response, Error> {
    // An invalid page is refused before the events are read.
    let (limit, offset) = page(query.limit, query.offset)?;
    let stored = stored::read_matching(gateway, user, filter, visible).await?;
    let total = stored.events.len() as u64;
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let events = stored
        .events
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
/// Returns one page of the kept events, newest first; the newest 10,000 can be listed. With
/// `follow=true` the answer is a stream of server-sent events, oldest first: the kept ones, then new
/// ones as they happen. The event `end` follows the last one. The event `gap` comes first if events
/// after `Last-Event-ID` are no longer kept.
#[utoipa::path(get, operation_id = "listEnvironmentEvents", path = "/environments/{id}/events", tag = "events",
    params(EnvironmentParameter, EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, example = 4711,
            description = "With `follow`: the `id` of the last event that the client has. The stream continues after it.")),
    responses((status = 200, description = "One page of events; with `follow=true` a stream of server-sent events.",
        content((EventList = "application/json"), (String = "text/event-stream", example = "id: 4711\ndata: {\"id\":4711,\"environment_id\":\"env-0123456789abcdef\",\"kind\":\"running\",\"status\":\"running\",\"at\":\"2026-01-22T10:00:01Z\"}\n\n")))))]
pub(crate) async fn list_for_environment(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let filter = subjects::environment_events(&location.id);
    // A caller who may view the environment may view all of its events.
    let visible = Visibility::All;
    if !query.follow {
        return Ok(list(&gateway, &principal.user, &filter, &visible, &query).await?);
    }
    let last = sse::last_event_id(&headers)?;
    let session = gateway.begin_session(&principal, SessionKind::Events)?;
    let grant = StreamGrant::environment(Action::ViewEnvironment, &location);
    let past = if location.status.is_ended() {
        Some(stored::read_matching(&gateway, &principal.user, &filter, &visible).await?)
    } else {
        None
    };
    // Without an id the client asks for the kept events only.
    let from = last.map_or(0, |last| last.saturating_add(1));
    let is_gap = last.is_some() && stored::bounds(&gateway).await?.has_gap_from(from);
    let source = match past {
        Some(past) if is_complete(&past.events) => {
            Follower::ended(past.events, last).with_share(past.share)
        }
        _ => Follower::environment(
            stored::open_from(&gateway, filter, from).await?,
            last,
            visible,
        ),
    };
    let source = source.with_gap(is_gap);
    Ok(sse::answer(
        "events", gateway, principal, grant, session, source,
    ))
}

/// List or follow the events of all environments
///
/// Returns one page of the kept events of every environment that the caller may see, newest
/// first; the newest 10,000 can be listed. With `follow=true` the answer is a stream of server-sent
/// events: new ones as they happen, or all after `Last-Event-ID`. The event `gap` comes first if
/// events after `Last-Event-ID` are no longer kept; the caller may have been allowed to see them or
/// not.
#[utoipa::path(get, operation_id = "listEvents", path = "/events", tag = "events",
    params(EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, example = 4711,
            description = "With `follow`: the `id` of the last event that the client has. The stream continues after it.")),
    responses((status = 200, description = "One page of events; with `follow=true` a stream of server-sent events.",
        content((EventList = "application/json"), (String = "text/event-stream", example = "id: 4711\ndata: {\"id\":4711,\"environment_id\":\"env-0123456789abcdef\",\"kind\":\"running\",\"status\":\"running\",\"at\":\"2026-01-22T10:00:01Z\"}\n\n")))))]
pub(crate) async fn list_all(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let visible = visibility(&principal);
    let filter = visible_subjects(&visible);
    if !query.follow {
        return Ok(list(&gateway, &principal.user, &filter, &visible, &query).await?);
    }
    let last = sse::last_event_id(&headers)?;
    let session = gateway.begin_session(&principal, SessionKind::Events)?;
    let bounds = stored::bounds(&gateway).await?;
    let from = last.unwrap_or(bounds.last).saturating_add(1);
    let stream = stored::open_from(&gateway, filter, from).await?;
    let grant = StreamGrant::Listing(visible.clone());
    let source = Follower::all(stream, last, visible).with_gap(bounds.has_gap_from(from));
    Ok(sse::answer(
        "events", gateway, principal, grant, session, source,
    ))
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::environment::{EventKind, Status};
    use agentbox_contracts::ids::EnvironmentId;
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
            pool: None,
            execution: None,
            at: Utc::now(),
        }
    }

    #[test]
    fn stored_events_are_complete_with_an_end_or_when_none_are_left() {
        let stored = |status| StoredEvent {
            sequence: 1,
            event: event(&UserId::random(), &EnvironmentId::random(), status),
            pending: 0,
        };
        assert!(is_complete(&[]));
        assert!(!is_complete(&[stored(Status::Running)]));
        assert!(is_complete(&[
            stored(Status::Running),
            stored(Status::Terminated)
        ]));
    }

    #[test]
    fn callers_read_the_subjects_of_their_own_events() {
        let owner = UserId::random();
        let own = format!("abx.v1.evt.env.{owner}.>");
        let listed = Visibility::Listed {
            owner: owner.clone(),
            only: vec![EnvironmentId::random()],
        };
        assert_eq!(visible_subjects(&Visibility::Owner(owner)), own);
        assert_eq!(visible_subjects(&listed), own);
        assert_eq!(visible_subjects(&Visibility::All), "abx.v1.evt.env.>");
    }

    #[test]
    fn visible_events_are_those_of_listed_environments() {
        let (owner, other) = (UserId::random(), UserId::random());
        let id = EnvironmentId::random();
        let event = event(&owner, &id, Status::Running);
        let listed = |owner: &UserId, only: &[&EnvironmentId]| Visibility::Listed {
            owner: owner.clone(),
            only: only.iter().copied().cloned().collect(),
        };
        assert!(is_visible(&Visibility::All, &event));
        assert!(is_visible(&Visibility::Owner(owner.clone()), &event));
        assert!(!is_visible(&Visibility::Owner(other.clone()), &event));
        assert!(is_visible(&listed(&owner, &[&id]), &event));
        assert!(!is_visible(&listed(&owner, &[]), &event));
        assert!(!is_visible(&listed(&other, &[&id]), &event));
    }
}
