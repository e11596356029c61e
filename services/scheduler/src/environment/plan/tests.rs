use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::FailureReason;
use proptest::prelude::*;

use super::*;
use crate::environment::state::{EndReason, LifecycleState, transition};

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
    let ends = |archive_until| Plan::Finalize {
        archive: Archive::Until(archive_until),
        removal: Removal::AfterTransition,
        event: exit_event(),
    };
    let started = Plan::Transition(LifecycleEvent::Started {
        address: "10.0.0.2:1".parse().unwrap(),
        at: t(1),
    });
    let lost = || Plan::Transition(LifecycleEvent::Lost);
    let soon = Plan::RequeueAfter(Duration::from_millis(250));
    let stop = Plan::Stop {
        grace: Duration::from_secs(10),
    };
    let gone = Plan::Transition(LifecycleEvent::Removed { exit_code: None });
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
        (Pending, present(starting()), 0, soon),
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
        (Pending, present(exited()), 0, ends(t(32))),
        (Running, Unknown, 0, Plan::Observe),
        (Running, present(running()), 0, Plan::Done),
        (Running, Absent, 0, lost()),
        (Running, present(starting()), 0, lost()),
        (Running, present(failed()), 0, lost()),
        (Running, present(exited()), 0, ends(t(32))),
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
        (Terminating, Absent, 0, gone),
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
    let silent = BoxPhase::Starting {
        message: String::new(),
    };
    assert_eq!(
        plan(&intent(Status::Pending), &present(silent), t(300)),
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
fn starting_box_is_looked_at_after_a_tenth_of_its_age_within_bounds() {
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
            "the box did not start within the start timeout: \
             the cluster does not answer: connection refused"
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

/// What may happen beside the reconciler.
#[derive(Clone, Copy, Debug)]
enum Outside {
    Delete,
    Expire,
    Exit,
    Vanish,
    Serve,
}

/// More steps than any environment needs from one outside change to the next.
const MAX_STEPS: usize = 8;

/// One environment and its box, as facts.
struct Model {
    state: LifecycleState,
    intent: Intent,
    /// `None`: there is no box.
    phase: Option<BoxPhase>,
    has_run: bool,
    now: i64,
}

impl Model {
    fn new(capacity_reserved: bool) -> Self {
        Self {
            state: LifecycleState::pending(None),
            intent: Intent {
                capacity_reserved,
                ..intent(Status::Pending)
            },
            phase: None,
            has_run: false,
            now: 0,
        }
    }

    fn record(&mut self, event: &LifecycleEvent) {
        let next =
            transition(t(self.now), &self.state, event).expect("the plan and the states agree");
        self.set(next);
    }

    fn set(&mut self, next: LifecycleState) {
        self.has_run |= next.status == Status::Running;
        self.intent.status = next.status;
        self.state = next;
    }

    fn remove_box(&mut self) {
        assert!(
            !matches!(self.state.status, Status::Pending | Status::Running),
            "only the box of an environment that ends is removed"
        );
        self.phase = None;
        self.intent.box_removed = true;
    }

    fn outside(&mut self, outside: Outside) {
        match outside {
            Outside::Delete | Outside::Expire => {
                let reason = if matches!(outside, Outside::Delete) {
                    EndReason::Deleted
                } else {
                    EndReason::Expired
                };
                if let Some(next) = transition(
                    t(self.now),
                    &self.state,
                    &LifecycleEvent::EndRequested(reason),
                ) {
                    self.intent.terminating_at = Some(t(self.now));
                    self.set(next);
                }
            }
            Outside::Exit if self.phase.is_some() => self.phase = Some(exited()),
            Outside::Vanish => self.phase = None,
            Outside::Serve if matches!(self.phase, Some(BoxPhase::Starting { .. })) => {
                self.phase = Some(running())
            }
            Outside::Exit | Outside::Serve => {}
        }
    }

    /// Follows the plan until it has nothing to do now; true: for good.
    fn reconcile(&mut self) -> bool {
        let mut observation = Observation::Unknown;
        for _ in 0..MAX_STEPS {
            self.now += 1;
            let looked = self.phase.clone().map_or(Observation::Absent, present);
            match plan(&self.intent, &observation, t(self.now)) {
                Plan::Done => return self.intent.box_removed,
                Plan::RequeueAfter(_) => return false,
                Plan::Observe => observation = looked,
                Plan::ReserveCapacity => self.intent.capacity_reserved = true,
                Plan::Ensure => {
                    assert!(!self.has_run, "a box is never created for one that has run");
                    let phase = self.phase.get_or_insert_with(starting).clone();
                    observation = present(phase);
                }
                Plan::Stop { .. } => {
                    self.phase = self.phase.take().map(|_| exited());
                    observation = Observation::Unknown;
                }
                Plan::Finalize { removal, event, .. } => {
                    if removal == Removal::BeforeTransition {
                        self.remove_box();
                    }
                    self.record(&event);
                }
                Plan::Transition(event) => {
                    self.intent.box_removed |= matches!(event, LifecycleEvent::Removed { .. });
                    self.record(&event);
                }
                Plan::Remove => self.remove_box(),
            }
        }
        panic!("no end after {MAX_STEPS} steps");
    }
}

fn any_outside() -> impl Strategy<Value = Outside> {
    prop_oneof![
        Just(Outside::Delete),
        Just(Outside::Expire),
        Just(Outside::Exit),
        Just(Outside::Vanish),
        Just(Outside::Serve),
    ]
}

fn any_observation() -> impl Strategy<Value = Observation> {
    prop_oneof![
        Just(Observation::Unknown),
        Just(Observation::Absent),
        prop_oneof![
            Just(starting()),
            Just(running()),
            Just(failed()),
            Just(exited())
        ]
        .prop_map(present),
    ]
}

fn any_intent() -> impl Strategy<Value = Intent> {
    (
        prop::sample::select(Status::ALL.to_vec()),
        any::<[bool; 3]>(),
        -400_i64..400,
        any::<u64>(),
    )
        .prop_map(
            |(status, [reserved, removed, told], deadline, grace)| Intent {
                start_deadline: t(deadline),
                capacity_reserved: reserved,
                terminating_at: told.then(|| t(1)),
                grace: Duration::from_secs(grace / 2),
                box_removed: removed,
                ..intent(status)
            },
        )
}

/// A state of `status`, for the transitions that a plan asks for.
fn state_of(status: Status) -> LifecycleState {
    LifecycleState {
        status,
        ..LifecycleState::pending(None)
    }
}

proptest! {
    #[test]
    fn any_outside_changes_then_delete_end_without_a_box(
        outside in proptest::collection::vec(any_outside(), 0..12),
        capacity_reserved in any::<bool>(),
    ) {
        let mut model = Model::new(capacity_reserved);
        for change in outside {
            model.reconcile();
            model.outside(change);
        }
        model.outside(Outside::Delete);
        let finished = (0..3).any(|_| model.reconcile());
        prop_assert!(finished, "{:?}", model.state);
        prop_assert!(model.state.status.is_ended());
        prop_assert!(model.phase.is_none());
    }

    /// The plan is total, and each of its steps is allowed in the status that it is for.
    #[test]
    fn any_plan_is_allowed_in_its_status(
        intent in any_intent(),
        observation in any_observation(),
        at in -400_i64..400,
    ) {
        let status = intent.status;
        match plan(&intent, &observation, t(at)) {
            Plan::Ensure | Plan::ReserveCapacity | Plan::RequeueAfter(_) =>
                prop_assert_eq!(status, Status::Pending),
            Plan::Stop { .. } => prop_assert_eq!(status, Status::Terminating),
            Plan::Remove => prop_assert!(status.is_ended() && !intent.box_removed),
            Plan::Done => prop_assert!(status == Status::Running || intent.box_removed),
            Plan::Observe => prop_assert_eq!(observation, Observation::Unknown),
            Plan::Finalize { removal, event, .. } => {
                prop_assert_eq!(
                    removal == Removal::BeforeTransition,
                    status == Status::Terminating
                );
                prop_assert!(transition(t(at), &state_of(status), &event).is_some());
            }
            Plan::Transition(event) =>
                prop_assert!(transition(t(at), &state_of(status), &event).is_some()),
        }
    }

    /// A retry is never later than the longest delay, whatever the clock says.
    #[test]
    fn any_error_is_retried_soon_or_fails_a_pending_environment(
        intent in any_intent(),
        at in -400_i64..400,
        is_pull in any::<bool>(),
    ) {
        let error = if is_pull { pull_error() } else { RuntimeError::Unavailable("gone".into()) };
        match plan_after_error(&intent, &error, t(at)) {
            Plan::RequeueAfter(delay) => prop_assert!(delay <= Duration::from_secs(2)),
            Plan::Transition(LifecycleEvent::StartFailed { .. }) =>
                prop_assert_eq!(intent.status, Status::Pending),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
