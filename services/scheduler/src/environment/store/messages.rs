//! The outbox messages of each change, in order. Pure, except that [`audit_message`] reads who sent
//! the request that is being answered.

use agentbox_contracts::audit::{AuditAction, AuditEntry, AuditOutcome};
use agentbox_contracts::environment::{
    Environment, EnvironmentEvent, EventKind, Status, StatusReason,
};
use chrono::{DateTime, Utc};

use super::change::{Change, QueueAction};
use super::outbox::OutboxMessage;
use crate::environment::record::Record;
use crate::environment::state::event_kind;

#[cfg(test)]
mod tests;

/// The messages of a new environment. `is_claim`: it has claimed a warm box.
pub(super) fn creation_messages(
    environment: &Environment,
    status_message: Option<String>,
    is_claim: bool,
) -> Vec<OutboxMessage> {
    let event = EnvironmentEvent {
        environment_id: environment.id.clone(),
        owner: environment.owner.clone(),
        kind: EventKind::Created,
        status: environment.status,
        status_reason: None,
        status_message,
        exit_code: None,
        pool: environment.pool.clone(),
        execution: None,
        at: environment.created_at,
    };
    let mut messages = Vec::with_capacity(3);
    // The request that claims a box configures it at once.
    if !is_claim {
        messages.push(OutboxMessage::reconcile(&environment.cluster));
    }
    messages.push(OutboxMessage::Event(event));
    messages
}

/// The messages of a transition.
pub(super) fn transition_messages(
    before: &Record,
    change: &Change,
    now: DateTime<Utc>,
) -> Vec<OutboxMessage> {
    let environment = &before.environment;
    let state = &change.state;
    let mut messages = Vec::with_capacity(3);
    if matches!(change.queue, QueueAction::Requeue(_)) {
        messages.push(OutboxMessage::reconcile(&environment.cluster));
    }
    if state.status != environment.status {
        match state.status {
            Status::Running => messages.push(OutboxMessage::Route(Some(before.route(state)))),
            // A pending environment has no route.
            Status::Terminating if state.address.is_some() => {
                messages.push(OutboxMessage::Route(Some(before.route(state))));
            }
            Status::Terminated | Status::Failed => messages.push(OutboxMessage::Route(None)),
            Status::Pending | Status::Terminating => {}
        }
        let event = before.event(event_kind(state.status), state, now);
        messages.push(OutboxMessage::Event(event));
    }
    messages
}

/// The audit entry of a change, the last of its messages. `None` in background work, which no API
/// request asked for.
pub(super) fn audit_message(action: AuditAction, target: &str) -> Option<OutboxMessage> {
    let origin = agentbox_bus::current_origin()?;
    let entry = AuditEntry::new(origin, action, Some(target), AuditOutcome::Ok);
    Some(OutboxMessage::Audit(entry))
}

/// Whether the change is a deletion that was asked for. A PATCH of the timeout may end an
/// environment too, and has an entry of its own.
pub(super) fn is_deletion(before: &Record, change: &Change) -> bool {
    let environment = &before.environment;
    let expires = change.state.status != environment.status
        && change.state.reason == Some(StatusReason::Expired);
    change.generation != environment.generation && !expires
}

/// The message of a PATCH.
pub(super) fn patch_messages(before: &Record, now: DateTime<Utc>) -> Vec<OutboxMessage> {
    let event = before.event(EventKind::Updated, &before.state(), now);
    vec![OutboxMessage::Event(event)]
}
