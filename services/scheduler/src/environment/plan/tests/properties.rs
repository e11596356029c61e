//! Properties of the plan, some of them on a model of one environment and its box.

use proptest::prelude::*;

use super::*;
use crate::environment::state::{EndReason, LifecycleState, transition};

/// A change that the reconciler did not make.
#[derive(Clone, Copy, Debug)]
enum ExternalChange {
    Delete,
    Expire,
    Exit,
    Lose,
    Start,
}

/// More steps than any environment needs from one external change to the next.
const MAX_STEPS: usize = 8;

/// A model of one environment and its box.
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

    fn apply_event(&mut self, event: &LifecycleEvent) {
        let next =
            transition(t(self.now), &self.state, event).expect("the plan and the states agree");
        self.set(next);
    }

    fn set(&mut self, next: LifecycleState) {
        self.has_run |= next.status == Status::Running;
        self.intent.claim = self
            .intent
            .claim
            .filter(|_| next.status == Status::Running)
            .map(|_| WarmClaim::Unrecorded);
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

    fn apply_external(&mut self, change: ExternalChange) {
        match change {
            ExternalChange::Delete | ExternalChange::Expire => {
                let reason = if matches!(change, ExternalChange::Delete) {
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
            ExternalChange::Exit if self.phase.is_some() => self.phase = Some(exited()),
            ExternalChange::Lose => self.phase = None,
            ExternalChange::Start if matches!(self.phase, Some(BoxPhase::Starting { .. })) => {
                self.phase = Some(running())
            }
            ExternalChange::Exit | ExternalChange::Start => {}
        }
    }

    /// Follows the plan until nothing is left to do now. True: nothing will be left to do later
    /// either.
    fn reconcile(&mut self) -> bool {
        let mut observation = Observation::Unknown;
        for _ in 0..MAX_STEPS {
            self.now += 1;
            let observed = self.phase.clone().map_or(Observation::Absent, present);
            match plan(&self.intent, &observation, t(self.now)) {
                Plan::Done => return self.intent.box_removed,
                Plan::RequeueAfter(_) => return false,
                Plan::Observe => observation = observed,
                Plan::ReserveCapacity => self.intent.capacity_reserved = true,
                Plan::ApplyNetworkPolicy => self.intent.network_policy_pending = false,
                Plan::RecordClaim => self.intent.claim = None,
                Plan::Claim { .. } => {
                    // A box that is not there, or does not run, is given up.
                    if matches!(self.phase, Some(BoxPhase::Running { .. })) {
                        observation = observed;
                    } else {
                        self.phase = None;
                        self.intent.claim = None;
                    }
                }
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
                    self.apply_event(&event);
                }
                Plan::Transition(event) => {
                    self.intent.box_removed |= matches!(event, LifecycleEvent::Removed { .. });
                    self.apply_event(&event);
                }
                Plan::Remove => self.remove_box(),
            }
        }
        panic!("no end after {MAX_STEPS} steps");
    }
}

fn any_external_change() -> impl Strategy<Value = ExternalChange> {
    prop_oneof![
        Just(ExternalChange::Delete),
        Just(ExternalChange::Expire),
        Just(ExternalChange::Exit),
        Just(ExternalChange::Lose),
        Just(ExternalChange::Start),
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
        any::<[bool; 4]>(),
        -400_i64..400,
        any::<u64>(),
        any::<bool>(),
    )
        .prop_map(
            |(status, [reserved, removed, terminating, changed], deadline, grace, claims)| Intent {
                start_deadline: t(deadline),
                capacity_reserved: reserved,
                terminating_at: terminating.then(|| t(1)),
                grace: Duration::from_secs(grace / 2),
                box_removed: removed,
                network_policy_pending: changed,
                claim: claim_of(status).filter(|_| claims),
                ..intent(status)
            },
        )
}

/// The claim that an environment in `status` may have.
fn claim_of(status: Status) -> Option<WarmClaim> {
    match status {
        Status::Pending => Some(pending_claim()),
        Status::Running => Some(WarmClaim::Unrecorded),
        Status::Terminating | Status::Terminated | Status::Failed => None,
    }
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
    fn any_external_changes_then_delete_end_without_a_box(
        changes in proptest::collection::vec(any_external_change(), 0..12),
        capacity_reserved in any::<bool>(),
        network_policy_pending in any::<bool>(),
        is_claim in any::<bool>(),
    ) {
        let mut model = Model::new(capacity_reserved);
        model.intent.network_policy_pending = network_policy_pending;
        if is_claim {
            model.intent.claim = Some(pending_claim());
            model.phase = Some(running());
        }
        for change in changes {
            model.reconcile();
            model.apply_external(change);
        }
        model.apply_external(ExternalChange::Delete);
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
            Plan::Ensure | Plan::ReserveCapacity | Plan::RequeueAfter(_) | Plan::Claim { .. } =>
                prop_assert_eq!(status, Status::Pending),
            Plan::Stop { .. } => prop_assert_eq!(status, Status::Terminating),
            Plan::Remove => prop_assert!(status.is_ended() && !intent.box_removed),
            Plan::ApplyNetworkPolicy => {
                prop_assert_eq!(status, Status::Running);
                prop_assert!(intent.network_policy_pending);
            }
            Plan::RecordClaim => prop_assert_eq!(status, Status::Running),
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

    /// A retry is never later than the longest delay, at any time of the clock.
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
