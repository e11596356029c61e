use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::FailureReason;

use super::*;

mod properties;

fn t(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

fn intent(status: Status) -> Intent {
    Intent {
        status,
        created_at: t(0),
        start_deadline: t(300),
        capacity_reserved: true,
        terminating_at: (status == Status::Terminating).then(|| t(1)),
        grace: Duration::from_secs(10),
        box_removed: false,
        network_policy_pending: false,
        claim: None,
        last_error: None,
    }
}

fn present(phase: BoxPhase) -> Observation {
    Observation::Present(Observed {
        id: EnvironmentId::random(),
        generation: 1,
        phase,
        created_at: t(0),
    })
}

fn running() -> BoxPhase {
    BoxPhase::Running {
        address: "10.0.0.2:1".parse().unwrap(),
        started_at: t(1),
    }
}

fn pending_claim() -> WarmClaim {
    WarmClaim::Pending {
        address: "10.0.0.2:1".parse().unwrap(),
    }
}

fn starting() -> BoxPhase {
    BoxPhase::Starting {
        message: "pulling".into(),
    }
}

fn failed() -> BoxPhase {
    BoxPhase::Failed {
        reason: FailureReason::ImagePull,
        message: "no such image".into(),
    }
}

fn exited() -> BoxPhase {
    BoxPhase::Exited {
        exit_code: 3,
        reason: ExitReason::Exited,
        message: "bye".into(),
        finished_at: t(2),
    }
}

fn exit_event() -> LifecycleEvent {
    LifecycleEvent::Exited {
        exit_code: 3,
        reason: ExitReason::Exited,
        message: "bye".into(),
        started_at: t(0),
        at: t(2),
    }
}

fn start_failed(reason: StatusReason, message: &str) -> Plan {
    Plan::Transition(LifecycleEvent::StartFailed {
        reason,
        message: message.into(),
    })
}

fn removed_first(archive: Archive, exit_code: Option<i32>) -> Plan {
    Plan::Finalize {
        archive,
        removal: Removal::BeforeTransition,
        event: LifecycleEvent::Removed { exit_code },
    }
}

#[test]
fn each_step_matches_the_table() {
    use Observation::{Absent, Unknown};
    use Status::{Failed, Pending, Running, Terminated, Terminating};
    let late = "the box did not start within the start timeout";
    let exits = |archive_until| Plan::Finalize {
        archive: Archive::Until(archive_until),
        removal: Removal::AfterTransition,
        event: exit_event(),
    };
    let started = Plan::Transition(LifecycleEvent::Started {
        address: "10.0.0.2:1".parse().unwrap(),
        at: t(1),
    });
    let lost = || Plan::Transition(LifecycleEvent::Lost);
    let requeue = Plan::RequeueAfter(Duration::from_millis(250));
    let stop = Plan::Stop {
        grace: Duration::from_secs(10),
    };
    let removed = Plan::Transition(LifecycleEvent::Removed { exit_code: None });
    let table: Vec<(Status, Observation, i64, Plan)> = vec![
        (Pending, Unknown, 0, Plan::Ensure),
        (Pending, Unknown, 299, Plan::Ensure),
        (Pending, Unknown, 300, Plan::Observe),
        (Pending, Absent, 0, Plan::Ensure),
        (
            Pending,
            Absent,
            300,
            start_failed(StatusReason::StartTimeout, late),
        ),
        (Pending, present(starting()), 0, requeue),
        (
            Pending,
            present(starting()),
            300,
            start_failed(StatusReason::StartTimeout, &format!("{late}: pulling")),
        ),
        (Pending, present(running()), 0, started.clone()),
        (Pending, present(running()), 300, started),
        (
            Pending,
            present(failed()),
            0,
            start_failed(StatusReason::ImagePull, "no such image"),
        ),
        (Pending, present(exited()), 0, exits(t(32))),
        (Running, Unknown, 0, Plan::Observe),
        (Running, present(running()), 0, Plan::Done),
        (Running, Absent, 0, lost()),
        (Running, present(starting()), 0, lost()),
        (Running, present(failed()), 0, lost()),
        (Running, present(exited()), 0, exits(t(32))),
        (Terminating, Unknown, 0, Plan::Observe),
        (Terminating, present(running()), 0, stop),
        (
            Terminating,
            present(exited()),
            0,
            removed_first(Archive::Until(t(41)), Some(3)),
        ),
        (
            Terminating,
            present(starting()),
            0,
            removed_first(Archive::Skip, None),
        ),
        (
            Terminating,
            present(failed()),
            0,
            removed_first(Archive::Skip, None),
        ),
        (Terminating, Absent, 0, removed),
        (Terminated, Unknown, 0, Plan::Remove),
        (Failed, Unknown, 0, Plan::Remove),
    ];
    for (status, observation, at, expected) in table {
        let step = plan(&intent(status), &observation, t(at));
        assert_eq!(step, expected, "{status:?}, {observation:?} at {at}");
    }
}

#[test]
fn pending_without_capacity_reserves_it_and_times_out_as_unschedulable() {
    let waiting = Intent {
        capacity_reserved: false,
        last_error: Some("waiting for capacity".into()),
        ..intent(Status::Pending)
    };
    assert_eq!(
        plan(&waiting, &Observation::Unknown, t(0)),
        Plan::ReserveCapacity
    );
    assert_eq!(
        plan(&waiting, &Observation::Absent, t(300)),
        start_failed(
            StatusReason::Unschedulable,
            "no capacity became available within the start timeout: waiting for capacity"
        )
    );
}

#[test]
fn start_timeout_with_an_empty_reason_has_no_cause() {
    let without_message = BoxPhase::Starting {
        message: String::new(),
    };
    assert_eq!(
        plan(&intent(Status::Pending), &present(without_message), t(300)),
        start_failed(
            StatusReason::StartTimeout,
            "the box did not start within the start timeout"
        )
    );
}

#[test]
fn ended_environment_whose_box_is_removed_is_done() {
    for status in [Status::Terminated, Status::Failed] {
        let done = Intent {
            box_removed: true,
            ..intent(status)
        };
        assert_eq!(plan(&done, &Observation::Unknown, t(0)), Plan::Done);
    }
}

#[test]
fn changed_network_policy_is_applied_to_a_running_box_only() {
    let changed = |status| Intent {
        network_policy_pending: true,
        ..intent(status)
    };
    let running = present(running());
    assert_eq!(
        plan(&changed(Status::Running), &running, t(0)),
        Plan::ApplyNetworkPolicy
    );
    assert_eq!(
        plan(&changed(Status::Running), &Observation::Unknown, t(0)),
        Plan::Observe
    );
    for status in [Status::Pending, Status::Terminating] {
        assert_eq!(
            plan(&changed(status), &running, t(0)),
            plan(&intent(status), &running, t(0)),
            "{status:?}"
        );
    }
}

#[test]
fn claimed_box_is_configured_before_it_is_observed_and_recorded_once_it_runs() {
    let claiming = Intent {
        claim: Some(pending_claim()),
        ..intent(Status::Pending)
    };
    let claim = Plan::Claim {
        address: "10.0.0.2:1".parse().unwrap(),
    };
    // Past the start deadline too: an observation would not show whether it is configured.
    for at in [0, 1_000] {
        assert_eq!(plan(&claiming, &Observation::Unknown, t(at)), claim);
    }
    let claimed = plan(&claiming, &present(running()), t(2));
    assert!(
        matches!(claimed, Plan::Transition(LifecycleEvent::Started { .. })),
        "{claimed:?}"
    );
    let unrecorded = Intent {
        claim: Some(WarmClaim::Unrecorded),
        network_policy_pending: true,
        ..intent(Status::Running)
    };
    for (observation, expected) in [
        (Observation::Unknown, Plan::Observe),
        (present(running()), Plan::RecordClaim),
        (Observation::Absent, Plan::Transition(LifecycleEvent::Lost)),
    ] {
        assert_eq!(plan(&unrecorded, &observation, t(3)), expected);
    }
    let ending = Intent {
        claim: Some(WarmClaim::Unrecorded),
        ..intent(Status::Terminating)
    };
    assert_eq!(
        plan(&ending, &Observation::Unknown, t(4)),
        Plan::Observe,
        "a claim does not delay the end"
    );
}

#[test]
fn starting_box_is_observed_after_a_tenth_of_its_age_within_bounds() {
    let starting = present(starting());
    for (age, delay_ms) in [
        (0, 250),
        (2, 250),
        (3, 300),
        (10, 1_000),
        (20, 2_000),
        (200, 2_000),
    ] {
        assert_eq!(
            plan(&intent(Status::Pending), &starting, t(age)),
            Plan::RequeueAfter(Duration::from_millis(delay_ms)),
            "at {age} s"
        );
    }
    // A clock that is behind the row's.
    assert_eq!(
        plan(&intent(Status::Pending), &starting, t(-60)),
        Plan::RequeueAfter(Duration::from_millis(250))
    );
}

#[test]
fn archive_of_a_stopped_box_waits_from_the_end_request_or_from_now() {
    let unknown_begin = Intent {
        terminating_at: None,
        ..intent(Status::Terminating)
    };
    assert_eq!(
        plan(&unknown_begin, &present(exited()), t(100)),
        removed_first(Archive::Until(t(140)), Some(3))
    );
    let endless = Intent {
        grace: Duration::MAX - ARCHIVE_TIMEOUT,
        ..intent(Status::Terminating)
    };
    assert_eq!(
        plan(&endless, &present(exited()), t(0)),
        removed_first(Archive::Until(DateTime::<Utc>::MAX_UTC), Some(3))
    );
}

fn pull_error() -> RuntimeError {
    RuntimeError::Cluster {
        operation: "image pull",
        message: "429".into(),
    }
}

#[test]
fn registry_that_keeps_failing_fails_the_environment_within_seconds() {
    let pending = intent(Status::Pending);
    for (age, delay_ms) in [(2, 250), (19, 1_900)] {
        assert_eq!(
            plan_after_error(&pending, &pull_error(), t(age)),
            Plan::RequeueAfter(Duration::from_millis(delay_ms))
        );
    }
    assert_eq!(
        plan_after_error(&pending, &pull_error(), t(20)),
        start_failed(StatusReason::ImagePull, "image pull failed: 429")
    );
}

#[test]
fn other_cluster_errors_are_retried_until_the_start_deadline() {
    let other = RuntimeError::Cluster {
        operation: "sandbox",
        message: "busy".into(),
    };
    assert_eq!(
        plan_after_error(&intent(Status::Pending), &other, t(20)),
        Plan::RequeueAfter(Duration::from_secs(2))
    );
}

#[test]
fn unreachable_cluster_fails_a_start_in_time_and_a_removal_never() {
    let error = RuntimeError::Unavailable("connection refused".into());
    assert_eq!(
        plan_after_error(&intent(Status::Pending), &error, t(299)),
        Plan::RequeueAfter(Duration::from_secs(2))
    );
    assert_eq!(
        plan_after_error(&intent(Status::Pending), &error, t(300)),
        start_failed(
            StatusReason::StartTimeout,
            "the box did not start within the start timeout: the cluster does not answer"
        )
    );
    for status in [Status::Running, Status::Terminating, Status::Failed] {
        for error in [&error, &pull_error()] {
            assert_eq!(
                plan_after_error(&intent(status), error, t(9_999)),
                Plan::RequeueAfter(Duration::from_secs(1))
            );
        }
    }
}
