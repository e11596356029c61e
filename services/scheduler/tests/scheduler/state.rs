//! The transition function, by table and by property.

use std::net::SocketAddr;

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_runtime::ExitReason;
use agentbox_scheduler::environment::state::{EndReason, Happening, Standing, transition};
use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).unwrap()
}

fn address() -> SocketAddr {
    "10.0.0.2:10777".parse().unwrap()
}

fn started() -> Happening {
    Happening::Started {
        address: address(),
        at: now(),
    }
}

fn exited(exit_code: i32, reason: ExitReason) -> Happening {
    Happening::Exited {
        exit_code,
        reason,
        message: String::new(),
        started_at: now(),
        at: now() + TimeDelta::seconds(1),
    }
}

fn not_started() -> Happening {
    Happening::NotStarted {
        reason: StatusReason::ImagePull,
        message: "no such image".into(),
    }
}

fn at(status: Status) -> Standing {
    let go = |happenings: &[Happening]| {
        happenings
            .iter()
            .fold(Standing::pending(None), |standing, happening| {
                transition(now(), &standing, happening).unwrap()
            })
    };
    match status {
        Status::Pending => go(&[]),
        Status::Running => go(&[started()]),
        Status::Terminating => go(&[started(), Happening::EndWanted(EndReason::Deleted)]),
        Status::Terminated => go(&[started(), exited(0, ExitReason::Exited)]),
        Status::Failed => go(&[not_started()]),
    }
}

#[test]
fn every_transition_is_the_one_in_the_table() {
    use Status::{Failed, Pending, Running, Terminated, Terminating};
    use StatusReason as R;
    let end = Happening::EndWanted;
    type Row = (Status, Happening, Option<(Status, Option<StatusReason>)>);
    let table: Vec<Row> = vec![
        (Pending, started(), Some((Running, None))),
        (Pending, not_started(), Some((Failed, Some(R::ImagePull)))),
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
        (Pending, Happening::Vanished, None),
        (
            Pending,
            end(EndReason::Deleted),
            Some((Terminating, Some(R::Deleted))),
        ),
        (Pending, Happening::Removed { exit_code: None }, None),
        (Running, started(), None),
        (Running, not_started(), None),
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
            Happening::Vanished,
            Some((Failed, Some(R::NodeLost))),
        ),
        (
            Running,
            end(EndReason::Expired),
            Some((Terminating, Some(R::Expired))),
        ),
        (Running, Happening::Removed { exit_code: None }, None),
        (Terminating, started(), None),
        (Terminating, exited(0, ExitReason::Exited), None),
        (Terminating, Happening::Vanished, None),
        (Terminating, end(EndReason::Expired), None),
        (
            Terminating,
            Happening::Removed {
                exit_code: Some(143),
            },
            Some((Terminated, Some(R::Deleted))),
        ),
    ];
    for (from, happening, expected) in table {
        let next = transition(now(), &at(from), &happening);
        let reached = next.map(|next| (next.status, next.reason));
        assert_eq!(reached, expected, "{from:?} + {happening:?}");
    }
}

#[test]
fn an_end_keeps_what_is_known_of_the_run() {
    let ended = transition(now(), &at(Status::Running), &exited(7, ExitReason::Exited)).unwrap();
    assert_eq!(ended.exit_code, Some(7));
    assert_eq!(ended.started_at, Some(now()));
    assert_eq!(ended.ended_at, Some(now() + TimeDelta::seconds(1)));
    assert_eq!(ended.message.as_deref(), Some("the command ended with 7"));
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let reason = prop_oneof![
        Just(ExitReason::Exited),
        Just(ExitReason::Stopped),
        Just(ExitReason::OomKilled),
        Just(ExitReason::Evicted),
        Just(ExitReason::NodeLost),
    ];
    prop_oneof![
        Just(started()),
        Just(not_started()),
        (any::<i32>(), reason).prop_map(|(code, reason)| exited(code, reason)),
        Just(Happening::Vanished),
        Just(Happening::EndWanted(EndReason::Deleted)),
        Just(Happening::EndWanted(EndReason::Expired)),
        proptest::option::of(any::<i32>()).prop_map(|exit_code| Happening::Removed { exit_code }),
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
    fn whatever_happens_the_invariants_hold(happenings in proptest::collection::vec(any_happening(), 0..24)) {
        let mut standing = Standing::pending(None);
        for happening in &happenings {
            let Some(next) = transition(now(), &standing, happening) else { continue };
            prop_assert!(!standing.status.is_ended(), "left {:?}", standing.status);
            prop_assert!(rank(next.status) > rank(standing.status), "{:?} to {:?}", standing.status, next.status);
            prop_assert_eq!(next.status.is_ended(), next.ended_at.is_some());
            prop_assert!(!next.status.is_ended() || next.reason.is_some());
            prop_assert!(!next.status.is_ended() || next.address.is_none());
            prop_assert!(next.status != Status::Running || next.started_at.is_some() && next.address.is_some());
            if standing.status == Status::Terminating {
                prop_assert_eq!(next.reason, standing.reason);
            }
            standing = next;
        }
    }
}
