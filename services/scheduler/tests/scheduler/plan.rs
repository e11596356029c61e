//! The plan, by table, and by following it in a pure model of a cluster.

use std::time::Duration;

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, ExitReason, FailureReason, Observed, RuntimeError};
use agentbox_scheduler::environment::plan::{
    Archive, Intent, Plan, Removal, Sight, after_refusal, plan,
};
use agentbox_scheduler::environment::state::{EndReason, Happening, Standing, transition};
use chrono::{DateTime, Utc};
use proptest::prelude::*;

fn t(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
}

fn intent(status: Status) -> Intent {
    Intent {
        status,
        created_at: t(0),
        start_deadline: t(300),
        admitted: true,
        terminating_at: (status == Status::Terminating).then(|| t(1)),
        grace: Duration::from_secs(10),
        box_removed: false,
        trouble: None,
    }
}

fn seen(phase: BoxPhase) -> Sight {
    Sight::Box(Observed {
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
        exit_code: 0,
        reason: ExitReason::Exited,
        message: String::new(),
        finished_at: t(2),
    }
}

#[test]
fn every_step_is_the_one_in_the_table() {
    use Status::{Failed, Pending, Running, Terminating};
    type Fits = fn(&Plan) -> bool;
    let table: Vec<(Status, Sight, i64, &str, Fits)> = vec![
        (Pending, Sight::Unseen, 0, "ensure", |p| *p == Plan::Ensure),
        (Pending, Sight::Unseen, 300, "look", |p| *p == Plan::Look),
        (Pending, Sight::Absent, 0, "ensure", |p| *p == Plan::Ensure),
        (Pending, Sight::Absent, 300, "too late", |p| {
            matches!(
                p,
                Plan::Record(Happening::NotStarted {
                    reason: StatusReason::StartTimeout,
                    ..
                })
            )
        }),
        (Pending, seen(starting()), 0, "wait", |p| {
            matches!(p, Plan::Wait(_))
        }),
        (
            Pending,
            seen(starting()),
            300,
            "too late, with why",
            |p| matches!(p, Plan::Record(Happening::NotStarted { message, .. }) if message.ends_with("pulling")),
        ),
        (Pending, seen(running()), 300, "late but there", |p| {
            matches!(p, Plan::Record(Happening::Started { .. }))
        }),
        (Pending, seen(failed()), 0, "failed", |p| {
            matches!(
                p,
                Plan::Record(Happening::NotStarted {
                    reason: StatusReason::ImagePull,
                    ..
                })
            )
        }),
        (Pending, seen(exited()), 0, "ran unseen", |p| {
            matches!(p, Plan::Conclude { .. })
        }),
        (Running, Sight::Unseen, 0, "look", |p| *p == Plan::Look),
        (Running, seen(running()), 0, "nothing", |p| {
            *p == Plan::Nothing
        }),
        (Running, Sight::Absent, 0, "lost", |p| {
            *p == Plan::Record(Happening::Vanished)
        }),
        (Running, seen(starting()), 0, "made anew", |p| {
            *p == Plan::Record(Happening::Vanished)
        }),
        (
            Running,
            seen(exited()),
            0,
            "its output is stored before its end shows",
            |p| {
                matches!(p, Plan::Conclude { archive: Archive::Until(until), removal: Removal::Later, .. }
                if *until == t(32))
            },
        ),
        (Terminating, Sight::Unseen, 0, "look", |p| *p == Plan::Look),
        (Terminating, seen(running()), 0, "stop", |p| {
            *p == Plan::Stop {
                grace: Duration::from_secs(10),
            }
        }),
        (
            Terminating,
            seen(exited()),
            0,
            "archive, remove, tell",
            |p| {
                matches!(p, Plan::Conclude { archive: Archive::Until(until), removal: Removal::First, .. }
                if *until == t(41))
            },
        ),
        (Terminating, seen(starting()), 0, "nothing to store", |p| {
            matches!(
                p,
                Plan::Conclude {
                    archive: Archive::Skip,
                    removal: Removal::First,
                    ..
                }
            )
        }),
        (Terminating, Sight::Absent, 0, "gone", |p| {
            *p == Plan::Record(Happening::Removed { exit_code: None })
        }),
        (Failed, Sight::Unseen, 0, "clean up", |p| *p == Plan::Remove),
    ];
    for (status, sight, at, claim, fits) in table {
        let step = plan(&intent(status), &sight, t(at));
        assert!(
            fits(&step),
            "{status:?}, {sight:?} at {at}: {claim}, not {step:?}"
        );
    }
}

#[test]
fn without_room_nothing_is_made_and_in_the_end_it_is_unschedulable() {
    let waiting = Intent {
        admitted: false,
        trouble: Some("waiting for room".into()),
        ..intent(Status::Pending)
    };
    assert_eq!(plan(&waiting, &Sight::Unseen, t(0)), Plan::Admit);
    let Plan::Record(Happening::NotStarted { reason, message }) =
        plan(&waiting, &Sight::Absent, t(300))
    else {
        panic!("it must fail");
    };
    assert_eq!(reason, StatusReason::Unschedulable);
    assert!(message.ends_with("waiting for room"), "{message}");
}

#[test]
fn an_ended_environment_whose_box_is_gone_needs_nothing() {
    for status in [Status::Terminated, Status::Failed] {
        let done = Intent {
            box_removed: true,
            ..intent(status)
        };
        assert_eq!(plan(&done, &Sight::Unseen, t(0)), Plan::Nothing);
    }
}

#[test]
fn a_registry_that_keeps_failing_fails_the_environment_within_seconds() {
    let error = RuntimeError::Cluster {
        operation: "image pull",
        message: "429".into(),
    };
    let pending = intent(Status::Pending);
    assert!(matches!(
        after_refusal(&pending, &error, t(2)),
        Plan::Wait(_)
    ));
    assert!(matches!(
        after_refusal(&pending, &error, t(20)),
        Plan::Record(Happening::NotStarted {
            reason: StatusReason::ImagePull,
            ..
        })
    ));
}

#[test]
fn a_dead_cluster_fails_a_start_in_time_and_a_removal_never() {
    let error = RuntimeError::Unavailable("connection refused".into());
    assert!(matches!(
        after_refusal(&intent(Status::Pending), &error, t(299)),
        Plan::Wait(_)
    ));
    assert!(matches!(
        after_refusal(&intent(Status::Pending), &error, t(300)),
        Plan::Record(Happening::NotStarted {
            reason: StatusReason::StartTimeout,
            ..
        })
    ));
    for status in [Status::Running, Status::Terminating, Status::Failed] {
        assert!(matches!(
            after_refusal(&intent(status), &error, t(9_999)),
            Plan::Wait(_)
        ));
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

/// One environment and its box, as facts.
struct World {
    standing: Standing,
    intent: Intent,
    /// `None`: there is no box.
    phase: Option<BoxPhase>,
    has_run: bool,
    now: i64,
}

impl World {
    fn happen(&mut self, happening: &Happening) {
        let next = transition(t(self.now), &self.standing, happening)
            .expect("the plan and the states agree");
        self.set(next);
    }

    fn set(&mut self, next: Standing) {
        self.has_run |= next.status == Status::Running;
        self.intent.status = next.status;
        self.standing = next;
    }

    fn outside(&mut self, outside: Outside) {
        match outside {
            Outside::Delete | Outside::Expire => {
                let reason = if matches!(outside, Outside::Delete) {
                    EndReason::Deleted
                } else {
                    EndReason::Expired
                };
                if let Some(next) =
                    transition(t(self.now), &self.standing, &Happening::EndWanted(reason))
                {
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

    /// Follows the plan until it rests; true: it is where it shall be for good.
    fn drive(&mut self) -> bool {
        let mut sight = Sight::Unseen;
        for _ in 0..24 {
            self.now += 1;
            let looked = self.phase.clone().map_or(Sight::Absent, seen);
            match plan(&self.intent, &sight, t(self.now)) {
                Plan::Nothing => return self.intent.box_removed,
                Plan::Wait(_) => return false,
                Plan::Look => sight = looked,
                Plan::Admit => self.intent.admitted = true,
                Plan::Ensure => {
                    assert!(
                        !self.has_run,
                        "a box is never made for what has been running"
                    );
                    let phase = self.phase.get_or_insert_with(starting).clone();
                    sight = seen(phase);
                }
                Plan::Stop { .. } => {
                    self.phase = self.phase.take().map(|_| exited());
                    sight = Sight::Unseen;
                }
                Plan::Conclude {
                    removal, happening, ..
                } => {
                    if removal == Removal::First {
                        self.phase = None;
                        self.intent.box_removed = true;
                    }
                    self.happen(&happening);
                }
                Plan::Record(happening) => {
                    self.intent.box_removed |= matches!(happening, Happening::Removed { .. });
                    self.happen(&happening);
                }
                Plan::Remove => {
                    self.phase = None;
                    self.intent.box_removed = true;
                }
            }
        }
        panic!("the plan goes in circles");
    }
}

proptest! {
    #[test]
    fn whatever_happens_beside_it_a_plan_ends_without_a_box_once_deleted(
        outside in proptest::collection::vec(
            prop_oneof![
                Just(Outside::Delete), Just(Outside::Expire), Just(Outside::Exit),
                Just(Outside::Vanish), Just(Outside::Serve),
            ],
            0..12,
        ),
        admitted in any::<bool>(),
    ) {
        let mut world = World {
            standing: Standing::pending(None),
            intent: Intent { admitted, ..intent(Status::Pending) },
            phase: None,
            has_run: false,
            now: 0,
        };
        for event in outside {
            world.drive();
            world.outside(event);
        }
        world.outside(Outside::Delete);
        let finished = (0..3).any(|_| world.drive());
        prop_assert!(finished, "{:?}", world.standing);
        prop_assert!(world.standing.status.is_ended());
        prop_assert!(world.phase.is_none());
    }
}
