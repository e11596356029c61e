//! What containerd and the facts say, as the seam's phase. Pure.
//!
//! Facts of ours go before what containerd says: only we know that we stopped a box,
//! and containerd remembers an OOM kill of any process in the box, not only the last.

use std::net::SocketAddr;

use agentbox_box_protocol::termination::Termination;
use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_runtime::{BoxPhase, ExitReason};
use chrono::{DateTime, Utc};
use k8s_cri::v1::{ContainerState, ContainerStatus};

use crate::facts::{Ending, Facts, Step};

/// 128 + SIGKILL.
const KILLED: i32 = 137;
/// What containerd 1.6 to 2 give as the reason of an OOM kill, and of a container that
/// was gone when they looked (a reboot, a lost shim).
const OOM_KILLED: &str = "OOMKilled";
const LOST: &str = "Unknown";
/// And of a container whose start failed, or was cut off with the connection of who asked
/// for it: nothing of it has run.
const NOT_STARTED: &str = "StartError";

/// One box's container, as far as it got.
#[derive(Clone, Debug, PartialEq)]
pub enum ContainerSeen {
    Absent,
    Created,
    Running,
    Exited(Box<ContainerStatus>),
}

/// All that is known of one box.
#[derive(Clone, Debug)]
pub struct Seen {
    pub facts: Option<Facts>,
    pub container: ContainerSeen,
    pub termination: Option<Termination>,
    /// The limit of the box as a whole was met, and boxd has told no end: where a kernel of
    /// the box's own uses the memory, the OOM killer takes all of it at once.
    pub out_of_memory: bool,
}

/// From the listing alone; an exited container needs its status.
pub fn listed(state: ContainerState) -> ContainerSeen {
    match state {
        ContainerState::ContainerCreated => ContainerSeen::Created,
        ContainerState::ContainerRunning => ContainerSeen::Running,
        ContainerState::ContainerExited | ContainerState::ContainerUnknown => ContainerSeen::Absent,
    }
}

/// From the status of one that does not run any more.
pub fn of_status(status: ContainerStatus) -> ContainerSeen {
    if status.reason == NOT_STARTED {
        ContainerSeen::Created
    } else {
        ContainerSeen::Exited(Box::new(status))
    }
}

pub fn phase(seen: &Seen) -> BoxPhase {
    let Some(facts) = &seen.facts else {
        return starting("what was left of a box, to be removed or made again");
    };
    if let Some(failure) = &facts.failure {
        return BoxPhase::Failed {
            reason: failure.reason,
            message: failure.message.clone(),
        };
    }
    match (&seen.container, facts.ready_at, &facts.network) {
        (ContainerSeen::Exited(status), _, _) => exited(status, facts, seen),
        (ContainerSeen::Running, Some(started_at), Some(network)) => BoxPhase::Running {
            address: SocketAddr::new(network.address.into(), DEFAULT_PORT),
            started_at,
        },
        // It ran, and containerd has lost it.
        (ContainerSeen::Absent | ContainerSeen::Created, Some(ready_at), _) => {
            let (reason, message) = match &facts.ending {
                Some(ending) => ended(ending),
                None => (ExitReason::NodeLost, "the container is gone".to_owned()),
            };
            BoxPhase::Exited {
                exit_code: KILLED,
                reason,
                message,
                finished_at: ready_at,
            }
        }
        (ContainerSeen::Running, _, _) => starting("boxd does not answer yet"),
        _ => starting(match facts.step {
            Step::PullingImage => "pulling the image",
            Step::Starting => "setting up the sandbox",
        }),
    }
}

fn starting(message: &str) -> BoxPhase {
    BoxPhase::Starting {
        message: message.to_owned(),
    }
}

fn ended(ending: &Ending) -> (ExitReason, String) {
    match ending {
        Ending::Stopped => (ExitReason::Stopped, String::new()),
        Ending::Evicted { message } => (ExitReason::Evicted, message.clone()),
    }
}

fn exited(status: &ContainerStatus, facts: &Facts, seen: &Seen) -> BoxPhase {
    let finished_at = DateTime::<Utc>::from_timestamp_nanos(status.finished_at);
    let said = seen.termination.as_ref();
    let exit_code = said.map_or(status.exit_code, |said| said.exit_code);
    let (reason, message) = if let Some(ending) = &facts.ending {
        ended(ending)
    } else if status.reason == LOST {
        (
            ExitReason::NodeLost,
            "containerd lost the container".to_owned(),
        )
    } else if (seen.out_of_memory && exit_code == KILLED)
        || said.is_some_and(|said| said.oom_killed)
        || (status.reason == OOM_KILLED && exit_code == KILLED)
    {
        (
            ExitReason::OomKilled,
            "the main command went over the memory limit".to_owned(),
        )
    } else {
        let message = said
            .map(|said| said.message.clone())
            .filter(|text| !text.is_empty());
        (
            ExitReason::Exited,
            message.unwrap_or_else(|| status.message.clone()),
        )
    };
    BoxPhase::Exited {
        exit_code,
        reason,
        message,
        finished_at,
    }
}

#[cfg(test)]
mod tests {
    use agentbox_runtime::FailureReason;

    use super::*;
    use crate::facts::Failure;
    use crate::network::BoxNetwork;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn facts(ready: bool) -> Facts {
        let mut facts = Facts::new(1, at(1));
        facts.ready_at = ready.then(|| at(2));
        facts.network = Some(BoxNetwork {
            address: "10.160.0.5".parse().unwrap(),
            mac: String::new(),
            port: String::new(),
        });
        facts
    }

    fn gone(exit_code: i32, reason: &str) -> ContainerSeen {
        of_status(ContainerStatus {
            exit_code,
            reason: reason.to_owned(),
            finished_at: 3_000_000_000,
            ..Default::default()
        })
    }

    fn said(exit_code: i32, oom_killed: bool) -> Termination {
        Termination {
            exit_code,
            oom_killed,
            started_at: at(2),
            finished_at: at(3),
            message: String::new(),
        }
    }

    fn of(facts: Facts, container: ContainerSeen, termination: Option<Termination>) -> BoxPhase {
        phase(&Seen {
            facts: Some(facts),
            container,
            termination,
            out_of_memory: false,
        })
    }

    #[test]
    fn a_box_runs_once_boxd_has_answered() {
        let address = "10.160.0.5:10777".parse().unwrap();
        assert_eq!(
            of(facts(true), ContainerSeen::Running, None),
            BoxPhase::Running {
                address,
                started_at: at(2)
            }
        );
        for container in [
            ContainerSeen::Running,
            ContainerSeen::Created,
            ContainerSeen::Absent,
            gone(128, "StartError"),
        ] {
            let phase = of(facts(false), container, None);
            assert!(matches!(phase, BoxPhase::Starting { .. }), "{phase:?}");
        }
    }

    #[test]
    fn why_a_box_ended_is_told_by_who_knows_best() {
        let stopped = Facts {
            ending: Some(Ending::Stopped),
            ..facts(true)
        };
        let evicted = Facts {
            ending: Some(Ending::Evicted {
                message: "2 of 1".into(),
            }),
            ..facts(true)
        };
        for (what, facts, container, termination, code, reason) in [
            (
                "by itself",
                facts(true),
                gone(3, "Error"),
                Some(said(3, false)),
                3,
                ExitReason::Exited,
            ),
            (
                "by itself, untold",
                facts(true),
                gone(3, "Error"),
                None,
                3,
                ExitReason::Exited,
            ),
            (
                "its command OOM-killed",
                facts(true),
                gone(137, "Error"),
                Some(said(137, true)),
                137,
                ExitReason::OomKilled,
            ),
            (
                "boxd OOM-killed",
                facts(true),
                gone(137, "OOMKilled"),
                None,
                137,
                ExitReason::OomKilled,
            ),
            (
                "a child OOM-killed before",
                facts(true),
                gone(0, "OOMKilled"),
                Some(said(0, false)),
                0,
                ExitReason::Exited,
            ),
            (
                "stopped after an OOM kill",
                stopped.clone(),
                gone(137, "OOMKilled"),
                None,
                137,
                ExitReason::Stopped,
            ),
            (
                "evicted",
                evicted.clone(),
                gone(137, "Error"),
                None,
                137,
                ExitReason::Evicted,
            ),
            (
                "a reboot",
                facts(true),
                gone(255, "Unknown"),
                None,
                255,
                ExitReason::NodeLost,
            ),
            (
                "vanished",
                facts(true),
                ContainerSeen::Absent,
                None,
                137,
                ExitReason::NodeLost,
            ),
            (
                "stopped and vanished",
                stopped,
                ContainerSeen::Absent,
                None,
                137,
                ExitReason::Stopped,
            ),
        ] {
            match of(facts, container, termination) {
                BoxPhase::Exited {
                    exit_code,
                    reason: got,
                    ..
                } => {
                    assert_eq!((exit_code, got), (code, reason), "{what}");
                }
                other => panic!("{what}: {other:?}"),
            }
        }
        match of(evicted, gone(137, ""), None) {
            BoxPhase::Exited {
                message,
                finished_at,
                ..
            } => {
                assert_eq!((message.as_str(), finished_at), ("2 of 1", at(3)));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_stays_one() {
        let failure = Failure {
            reason: FailureReason::ImagePull,
            message: "no".into(),
        };
        let failed = Facts {
            failure: Some(failure),
            ..facts(false)
        };
        assert!(matches!(
            of(failed, ContainerSeen::Absent, None),
            BoxPhase::Failed {
                reason: FailureReason::ImagePull,
                ..
            }
        ));
    }

    #[test]
    fn what_has_no_facts_is_half_made() {
        let seen = Seen {
            facts: None,
            container: ContainerSeen::Running,
            termination: None,
            out_of_memory: false,
        };
        assert!(matches!(phase(&seen), BoxPhase::Starting { .. }));
    }

    #[test]
    fn a_box_that_the_oom_killer_took_as_a_whole_is_told_so() {
        for (out_of_memory, code, expected) in [
            (true, KILLED, ExitReason::OomKilled),
            (true, 1, ExitReason::Exited),
            (false, KILLED, ExitReason::Exited),
        ] {
            let phase = phase(&Seen {
                facts: Some(facts(true)),
                container: gone(code, "Error"),
                termination: None,
                out_of_memory,
            });
            let BoxPhase::Exited {
                exit_code, reason, ..
            } = phase
            else {
                panic!("{phase:?}")
            };
            assert_eq!((exit_code, reason), (code, expected));
        }
    }
}
