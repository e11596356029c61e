//! The rows of the outbox as they are stored and published.

use std::time::Duration;

use agentbox_contracts::environment::StatusReason;
use agentbox_contracts::environment::rpc::CreateRequest;
use agentbox_runtime::ExitReason;
use serde_json::json;

use super::*;
use crate::environment::creation::Creation;
use crate::environment::state::{EndReason, LifecycleEvent, transition};

fn t(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

/// The record of a new environment, in the cluster `local`.
fn pending() -> Record {
    let request = CreateRequest {
        owner: "user-0123456789abcdef".parse().unwrap(),
        owner_username: "ada".into(),
        request: serde_json::from_value(json!({
            "name": "snapshot",
            "image": "busybox",
            "resources": { "cpu": "100m", "memory": "64Mi", "storage": "64Mi" },
            "timeout_s": 600,
        }))
        .unwrap(),
        idempotency_key: None,
        limits: Default::default(),
    };
    let id = "env-0123456789abcdef".parse().unwrap();
    let creation = Creation::new(id, request, Duration::from_secs(300), t(0)).unwrap();
    let mut environment = creation.environment;
    environment.cluster = "local".into();
    Record {
        environment,
        sealed_variables: None,
        quantities: creation.quantities,
        start_deadline: creation.start_deadline,
        capacity_reserved: true,
        terminating_at: None,
        grace: Duration::ZERO,
        box_removed: false,
        network_policy_pending: false,
        claim: None,
    }
}

/// The messages of `event`, and the record after it.
fn apply(
    before: &Record,
    event: &LifecycleEvent,
    now: DateTime<Utc>,
) -> (Vec<OutboxMessage>, Record) {
    let state = transition(now, &before.state(), event).unwrap();
    let change = match event {
        LifecycleEvent::EndRequested(_) => {
            Change::requested(before, state.clone(), Duration::from_secs(10), now)
        }
        _ => Change::observed(before, state.clone()),
    };
    let messages = transition_messages(before, &change, now);
    let mut after = before.clone();
    after.environment.status = state.status;
    after.environment.status_reason = state.reason;
    after.environment.status_message = state.message;
    after.environment.exit_code = state.exit_code;
    after.environment.address = state.address;
    (messages, after)
}

fn started() -> LifecycleEvent {
    LifecycleEvent::Started {
        address: "10.0.0.2:10777".parse().unwrap(),
        at: t(1),
    }
}

#[test]
fn creation_sends_a_command_and_an_event() {
    let waiting = "waiting for capacity in cluster `local`: 0 of CPU available, 100m requested";
    insta::assert_json_snapshot!(
        "created",
        creation_messages(&pending().environment, Some(waiting.into()), false)
    );
}

#[test]
fn start_sends_a_route_and_an_event() {
    insta::assert_json_snapshot!("running", apply(&pending(), &started(), t(2)).0);
}

#[test]
fn patch_sends_an_event() {
    let (_, running) = apply(&pending(), &started(), t(2));
    insta::assert_json_snapshot!("updated", patch_messages(&running, t(3)));
}

#[test]
fn delete_of_a_running_environment_sends_a_command_a_route_and_an_event() {
    let (_, running) = apply(&pending(), &started(), t(2));
    let deleted = LifecycleEvent::EndRequested(EndReason::Deleted);
    let (messages, terminating) = apply(&running, &deleted, t(4));
    insta::assert_json_snapshot!("terminating", messages);
    let removed = LifecycleEvent::Removed {
        exit_code: Some(143),
    };
    insta::assert_json_snapshot!("terminated", apply(&terminating, &removed, t(5)).0);
}

#[test]
fn delete_of_a_pending_environment_sends_no_route() {
    let deleted = LifecycleEvent::EndRequested(EndReason::Deleted);
    insta::assert_json_snapshot!(
        "terminating_before_start",
        apply(&pending(), &deleted, t(4)).0
    );
}

#[test]
fn exit_removes_the_route_and_sends_an_event() {
    let (_, running) = apply(&pending(), &started(), t(2));
    let exited = LifecycleEvent::Exited {
        exit_code: 3,
        reason: ExitReason::Exited,
        message: String::new(),
        started_at: t(1),
        at: t(6),
    };
    insta::assert_json_snapshot!("exited", apply(&running, &exited, t(7)).0);
}

#[test]
fn failed_start_removes_the_route_and_sends_an_event() {
    let failed = LifecycleEvent::StartFailed {
        reason: StatusReason::ImagePull,
        message: "no such image".into(),
    };
    insta::assert_json_snapshot!("start_failed", apply(&pending(), &failed, t(8)).0);
}

#[test]
fn change_that_keeps_the_status_sends_a_command_only() {
    let (_, running) = apply(&pending(), &started(), t(2));
    let deleted = LifecycleEvent::EndRequested(EndReason::Deleted);
    let (_, terminating) = apply(&running, &deleted, t(4));
    let forced = Change::requested(&terminating, terminating.state(), Duration::ZERO, t(5));
    insta::assert_json_snapshot!("forced", transition_messages(&terminating, &forced, t(5)));
}
