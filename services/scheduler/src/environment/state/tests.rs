use agentbox_contracts::environment::{EventKind, Status, StatusReason};
use agentbox_runtime::{ExitReason, FailureReason};
use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).unwrap()
}

fn address() -> SocketAddr {
    "10.0.0.2:10777".parse().unwrap()
}

fn started() -> LifecycleEvent {
    LifecycleEvent::Started {
        address: address(),
        at: now(),
    }
}

fn exited(exit_code: i32, reason: ExitReason) -> LifecycleEvent {
    LifecycleEvent::Exited {
        exit_code,
        reason,
        message: String::new(),
        started_at: now(),
        at: now() + TimeDelta::seconds(1),
    }
}

fn start_failed() -> LifecycleEvent {
    LifecycleEvent::StartFailed {
        reason: StatusReason::ImagePull,
        message: "no such image".into(),
    }
}

fn after(events: &[LifecycleEvent]) -> LifecycleState {
    events
        .iter()
        .fold(LifecycleState::pending(None), |state, event| {
            transition(now(), &state, event).unwrap()
        })
}

fn at(status: Status) -> LifecycleState {
    let deleted = LifecycleEvent::EndRequested(EndReason::Deleted);
    match status {
        Status::Pending => after(&[]),
        Status::Running => after(&[started()]),
        Status::Terminating => after(&[started(), deleted]),
        Status::Terminated => after(&[started(), exited(0, ExitReason::Exited)]),
        Status::Failed => after(&[start_failed()]),
    }
}

#[test]
fn each_transition_matches_the_table() {
    use Status::{Failed, Pending, Running, Terminated, Terminating};
    use StatusReason as R;
    let end = LifecycleEvent::EndRequested;
    let removed = |exit_code| LifecycleEvent::Removed { exit_code };
    type Row = (
        Status,
        LifecycleEvent,
        Option<(Status, Option<StatusReason>)>,
    );
    let table: Vec<Row> = vec![
        (Pending, started(), Some((Running, None))),
        (Pending, start_failed(), Some((Failed, Some(R::ImagePull)))),
        (
            Pending,
            exited(0, ExitReason::Exited),
            Some((Terminated, Some(R::Exited))),
        ),
        (
            Pending,
            exited(3, ExitReason::Exited),
            Some((Failed, Some(R::Exited))),
        ),
        (Pending, LifecycleEvent::Lost, None),
        (
            Pending,
            end(EndReason::Deleted),
            Some((Terminating, Some(R::Deleted))),
        ),
        (Pending, removed(None), None),
        (Running, started(), None),
        (Running, start_failed(), None),
        (
            Running,
            exited(0, ExitReason::Exited),
            Some((Terminated, Some(R::Exited))),
        ),
        (
            Running,
            exited(1, ExitReason::Exited),
            Some((Failed, Some(R::Exited))),
        ),
        (
            Running,
            exited(0, ExitReason::Stopped),
            Some((Failed, Some(R::Exited))),
        ),
        (
            Running,
            exited(137, ExitReason::OomKilled),
            Some((Failed, Some(R::OomKilled))),
        ),
        (
            Running,
            exited(137, ExitReason::Evicted),
            Some((Failed, Some(R::Evicted))),
        ),
        (
            Running,
            exited(137, ExitReason::NodeLost),
            Some((Failed, Some(R::NodeLost))),
        ),
        (
            Running,
            LifecycleEvent::Lost,
            Some((Failed, Some(R::NodeLost))),
        ),
        (
            Running,
            end(EndReason::Expired),
            Some((Terminating, Some(R::Expired))),
        ),
        (Running, removed(None), None),
        (Terminating, started(), None),
        (Terminating, start_failed(), None),
        (Terminating, exited(0, ExitReason::Exited), None),
        (Terminating, LifecycleEvent::Lost, None),
        (Terminating, end(EndReason::Expired), None),
        (
            Terminating,
            removed(Some(143)),
            Some((Terminated, Some(R::Deleted))),
        ),
    ];
    for (from, event, expected) in table {
        let next = transition(now(), &at(from), &event);
        let reached = next.map(|next| (next.status, next.reason));
        assert_eq!(reached, expected, "{from:?} + {event:?}");
    }
}

#[test]
fn pending_state_keeps_its_message_and_nothing_else() {
    assert_eq!(
        LifecycleState::pending(Some("waiting".into())),
        LifecycleState {
            status: Status::Pending,
            reason: None,
            message: Some("waiting".into()),
            exit_code: None,
            started_at: None,
            ended_at: None,
            address: None,
        }
    );
}

#[test]
fn start_sets_start_time_and_address_and_clears_the_message() {
    let pending = LifecycleState {
        reason: Some(StatusReason::Unschedulable),
        ..LifecycleState::pending(Some("waiting for capacity".into()))
    };
    assert_eq!(
        transition(now(), &pending, &started()).unwrap(),
        LifecycleState {
            status: Status::Running,
            reason: None,
            message: None,
            exit_code: None,
            started_at: Some(now()),
            ended_at: None,
            address: Some(address()),
        }
    );
}

#[test]
fn failed_start_keeps_its_message_and_ends_now() {
    let failed = at(Status::Failed);
    assert_eq!(failed.message.as_deref(), Some("no such image"));
    assert_eq!(failed.ended_at, Some(now()));
    let without_message = LifecycleEvent::StartFailed {
        reason: StatusReason::Quota,
        message: String::new(),
    };
    assert_eq!(after(&[without_message]).message, None);
}

#[test]
fn exit_keeps_code_and_times_of_the_run_unless_the_box_was_lost() {
    let ended = transition(now(), &at(Status::Running), &exited(7, ExitReason::Exited)).unwrap();
    assert_eq!(ended.exit_code, Some(7));
    assert_eq!(ended.started_at, Some(now()));
    assert_eq!(ended.ended_at, Some(now() + TimeDelta::seconds(1)));
    assert_eq!(
        ended.message.as_deref(),
        Some("the command exited with code 7")
    );
    assert_eq!(ended.address, None);
    let lost = exited(137, ExitReason::NodeLost);
    let lost = transition(now(), &at(Status::Running), &lost).unwrap();
    assert_eq!(lost.exit_code, None);
}

#[test]
fn exit_before_the_first_observation_takes_the_earlier_of_start_and_end() {
    let exit = |started_at, at| LifecycleEvent::Exited {
        exit_code: 0,
        reason: ExitReason::Exited,
        message: "by itself".into(),
        started_at,
        at,
    };
    let later = now() + TimeDelta::seconds(9);
    let ended = after(&[exit(now(), later)]);
    assert_eq!(
        (ended.started_at, ended.ended_at),
        (Some(now()), Some(later))
    );
    assert_eq!(ended.message.as_deref(), Some("by itself"));
    let ended = after(&[exit(later, now())]);
    assert_eq!(
        (ended.started_at, ended.ended_at),
        (Some(now()), Some(now()))
    );
}

#[test]
fn end_request_keeps_the_run_and_sets_the_reason_as_message() {
    for (reason, message) in [
        (EndReason::Deleted, "the environment was deleted"),
        (EndReason::Expired, "the environment reached its timeout"),
        (
            EndReason::Idle,
            "the environment was idle for its idle_timeout",
        ),
        (
            EndReason::Drained,
            "the environment was ended because an operator drained its cluster",
        ),
    ] {
        let ending = after(&[started(), LifecycleEvent::EndRequested(reason)]);
        assert_eq!(ending.message.as_deref(), Some(message));
        assert_eq!(ending.address, Some(address()));
        assert_eq!(ending.ended_at, None);
    }
}

#[test]
fn removal_takes_the_exit_code_and_the_time_of_the_transition() {
    let later = now() + TimeDelta::seconds(5);
    let removed = LifecycleEvent::Removed {
        exit_code: Some(143),
    };
    let ended = transition(later, &at(Status::Terminating), &removed).unwrap();
    assert_eq!(ended.exit_code, Some(143));
    assert_eq!(ended.ended_at, Some(later));
    assert_eq!(ended.address, None);
}

#[test]
fn loss_of_a_running_box_sets_a_message_about_its_data() {
    let lost = after(&[started(), LifecycleEvent::Lost]);
    assert_eq!(
        lost.message.as_deref(),
        Some("the cluster lost the box and the data in it")
    );
    assert_eq!(lost.exit_code, None);
}

#[test]
fn each_failure_reason_has_its_status_reason() {
    for (failure, reason) in [
        (FailureReason::ImagePull, StatusReason::ImagePull),
        (FailureReason::ImageInvalid, StatusReason::ImageInvalid),
        (FailureReason::Unschedulable, StatusReason::Unschedulable),
        (FailureReason::Quota, StatusReason::Quota),
        (FailureReason::RuntimeClass, StatusReason::RuntimeClass),
    ] {
        assert_eq!(start_reason(failure), reason);
    }
}

#[test]
fn only_an_environment_that_is_not_ending_can_be_changed() {
    for status in Status::ALL {
        let can_be_changed = matches!(status, Status::Pending | Status::Running);
        assert_eq!(patch_refusal(*status).is_none(), can_be_changed, "{status}");
    }
}

#[test]
fn each_status_has_its_event_kind() {
    for (status, kind) in [
        (Status::Pending, EventKind::Created),
        (Status::Running, EventKind::Running),
        (Status::Terminating, EventKind::Terminating),
        (Status::Terminated, EventKind::Terminated),
        (Status::Failed, EventKind::Failed),
    ] {
        assert_eq!(event_kind(status), kind);
    }
}

fn any_event() -> impl Strategy<Value = LifecycleEvent> {
    let reason = prop_oneof![
        Just(ExitReason::Exited),
        Just(ExitReason::Stopped),
        Just(ExitReason::OomKilled),
        Just(ExitReason::Evicted),
        Just(ExitReason::NodeLost),
    ];
    prop_oneof![
        Just(started()),
        Just(start_failed()),
        (any::<i32>(), reason).prop_map(|(code, reason)| exited(code, reason)),
        Just(LifecycleEvent::Lost),
        Just(LifecycleEvent::EndRequested(EndReason::Deleted)),
        Just(LifecycleEvent::EndRequested(EndReason::Expired)),
        Just(LifecycleEvent::EndRequested(EndReason::Idle)),
        Just(LifecycleEvent::EndRequested(EndReason::Drained)),
        proptest::option::of(any::<i32>())
            .prop_map(|exit_code| LifecycleEvent::Removed { exit_code }),
    ]
}

const fn rank(status: Status) -> u8 {
    match status {
        Status::Pending => 0,
        Status::Running => 1,
        Status::Terminating => 2,
        Status::Terminated | Status::Failed => 3,
    }
}

proptest! {
    #[test]
    fn any_events_keep_the_invariants(events in proptest::collection::vec(any_event(), 0..24)) {
        let mut state = LifecycleState::pending(None);
        for event in &events {
            let Some(next) = transition(now(), &state, event) else { continue };
            prop_assert!(!state.status.is_ended(), "left {:?}", state.status);
            prop_assert!(rank(next.status) > rank(state.status), "{:?} to {:?}", state.status, next.status);
            prop_assert_eq!(next.status.is_ended(), next.ended_at.is_some());
            prop_assert!(!next.status.is_ended() || next.reason.is_some());
            prop_assert!(!next.status.is_ended() || next.address.is_none());
            prop_assert!(next.status != Status::Running || next.started_at.is_some() && next.address.is_some());
            if state.status == Status::Terminating {
                prop_assert_eq!(next.reason, state.reason);
            }
            state = next;
        }
    }

    #[test]
    fn ended_state_ignores_every_event(event in any_event(), failed in any::<bool>()) {
        let ended = at(if failed { Status::Failed } else { Status::Terminated });
        prop_assert_eq!(transition(now(), &ended, &event), None);
    }

    /// Each event changes a state at most once.
    #[test]
    fn repeated_event_changes_nothing(events in proptest::collection::vec(any_event(), 1..8)) {
        let mut state = LifecycleState::pending(None);
        for event in &events {
            if let Some(next) = transition(now(), &state, event) {
                prop_assert_eq!(transition(now(), &next, event), None);
                state = next;
            }
        }
    }
}
