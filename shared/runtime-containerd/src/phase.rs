//! Decides a box's phase from its container and its recorded state. Pure.
//!
//! The recorded state takes precedence over containerd's: only it knows that the driver stopped a
//! box, and containerd reports an OOM kill of any process in the box, not only of the main command.

use std::net::SocketAddr;

use agentbox_box_protocol::termination::Termination;
use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_runtime::{BoxPhase, ExitReason, FailureReason};
use chrono::{DateTime, Utc};
use k8s_cri::v1::{ContainerState, ContainerStatus};

use crate::box_state::{BoxState, Ending, Failure, Step};

/// 128 + SIGKILL.
const KILLED: i32 = 137;
/// The reason of containerd 1.6 to 2 for an OOM kill.
const OOM_KILLED: &str = "OOMKilled";
/// The reason of containerd 1.6 to 2 for a container that it lost: a reboot, a lost shim.
const LOST: &str = "Unknown";
/// The reason of a container whose start failed or was interrupted: nothing of it has run.
const NOT_STARTED: &str = "StartError";

/// A box's container as containerd has it.
#[derive(Clone, Debug, PartialEq)]
pub enum ObservedContainer {
    Absent,
    Created,
    Running,
    Exited(Box<ContainerStatus>),
}

/// The inputs of the decision about one box.
#[derive(Clone, Debug)]
pub struct Observation {
    pub state: Option<BoxState>,
    pub container: ObservedContainer,
    pub termination: Option<Termination>,
    /// The memory limit of the whole box was reached, and boxd has written no exit status. This
    /// happens to a box with a kernel of its own, which the OOM killer ends as a whole.
    pub out_of_memory: bool,
}

/// Reads a listed state. An exited container needs [`from_status`].
pub fn from_listing(state: ContainerState) -> ObservedContainer {
    match state {
        ContainerState::ContainerCreated => ObservedContainer::Created,
        ContainerState::ContainerRunning => ObservedContainer::Running,
        ContainerState::ContainerExited | ContainerState::ContainerUnknown => {
            ObservedContainer::Absent
        }
    }
}

/// Reads the status of a container that has ended.
pub fn from_status(status: ContainerStatus) -> ObservedContainer {
    if status.reason == NOT_STARTED {
        ObservedContainer::Created
    } else {
        ObservedContainer::Exited(Box::new(status))
    }
}

/// The failure of a container that ended before boxd answered; `None` when its main command has
/// run, or when something else ended it. boxd reports the end of every command, so a container
/// without a report did not run it: the kernel could not execute boxd, or boxd could not start.
pub fn failed_start(
    status: &ContainerStatus,
    termination: Option<&Termination>,
) -> Option<Failure> {
    let was_ended = status.exit_code == KILLED
        || matches!(status.reason.as_str(), OOM_KILLED | LOST | NOT_STARTED);
    (termination.is_none() && !was_ended).then(|| Failure {
        reason: FailureReason::ImageInvalid,
        message: format!(
            "the box could not start: it ended with code {} before its command",
            status.exit_code
        ),
    })
}

pub fn phase(observation: &Observation) -> BoxPhase {
    let Some(state) = &observation.state else {
        return starting("the box is incomplete, and is removed or created again");
    };
    if let Some(failure) = &state.failure {
        return BoxPhase::Failed {
            reason: failure.reason,
            message: failure.message.clone(),
        };
    }
    match (&observation.container, state.ready_at, &state.network) {
        (ObservedContainer::Exited(status), _, _) => exited(status, state, observation),
        (ObservedContainer::Running, Some(started_at), Some(network)) => BoxPhase::Running {
            address: SocketAddr::new(network.address.into(), DEFAULT_PORT),
            started_at,
        },
        // The box ran, and containerd has lost its container.
        (ObservedContainer::Absent | ObservedContainer::Created, Some(ready_at), _) => {
            let (reason, message) = match &state.ending {
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
        (ObservedContainer::Running, _, _) => starting("boxd does not answer yet"),
        _ => starting(match state.step {
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

fn exited(status: &ContainerStatus, state: &BoxState, observation: &Observation) -> BoxPhase {
    let finished_at = DateTime::<Utc>::from_timestamp_nanos(status.finished_at);
    // boxd exits with the code of its command. A report with another code was changed by a process of
    // the box, or boxd was killed after it: the runtime's code counts.
    let exit_code = status.exit_code;
    let report = observation.termination.as_ref();
    let agreed = report.filter(|report| report.exit_code == exit_code);
    let (reason, message) = if let Some(ending) = &state.ending {
        ended(ending)
    } else if status.reason == LOST {
        (
            ExitReason::NodeLost,
            "containerd lost the container".to_owned(),
        )
    } else if (observation.out_of_memory && exit_code == KILLED)
        || agreed.is_some_and(|report| report.oom_killed)
        || (status.reason == OOM_KILLED && exit_code == KILLED)
    {
        (
            ExitReason::OomKilled,
            "the main command exceeded the memory limit".to_owned(),
        )
    } else if report.is_some() {
        let message = agreed
            .map(|report| report.message.as_str())
            .filter(|message| !message.is_empty());
        let message = message.unwrap_or(&status.message);
        (ExitReason::Exited, message.to_owned())
    } else {
        // The code is the box's own, not the command's.
        (
            ExitReason::NodeLost,
            format!(
                "the box ended with code {} and did not report the end of its command",
                status.exit_code
            ),
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
    use super::*;
    use crate::network::BoxNetwork;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn state(ready: bool) -> BoxState {
        let mut state = BoxState::new(1, at(1));
        state.ready_at = ready.then(|| at(2));
        state.network = Some(BoxNetwork {
            address: "10.160.0.5".parse().unwrap(),
            mac: String::new(),
            port: String::new(),
            owner: None,
        });
        state
    }

    fn gone(exit_code: i32, reason: &str) -> ObservedContainer {
        from_status(ContainerStatus {
            exit_code,
            reason: reason.to_owned(),
            finished_at: 3_000_000_000,
            ..Default::default()
        })
    }

    fn termination(exit_code: i32, oom_killed: bool) -> Termination {
        Termination {
            exit_code,
            oom_killed,
            started_at: at(2),
            finished_at: at(3),
            message: String::new(),
            claim: None,
        }
    }

    fn phase_of(
        state: BoxState,
        container: ObservedContainer,
        termination: Option<Termination>,
    ) -> BoxPhase {
        phase(&Observation {
            state: Some(state),
            container,
            termination,
            out_of_memory: false,
        })
    }

    #[test]
    fn box_is_running_once_boxd_has_answered() {
        let address = "10.160.0.5:10777".parse().unwrap();
        assert_eq!(
            phase_of(state(true), ObservedContainer::Running, None),
            BoxPhase::Running {
                address,
                started_at: at(2)
            }
        );
        for container in [
            ObservedContainer::Running,
            ObservedContainer::Created,
            ObservedContainer::Absent,
            gone(128, "StartError"),
        ] {
            let phase = phase_of(state(false), container, None);
            assert!(matches!(phase, BoxPhase::Starting { .. }), "{phase:?}");
        }
    }

    #[test]
    fn exit_reason_comes_from_the_most_reliable_source() {
        let stopped = BoxState {
            ending: Some(Ending::Stopped),
            ..state(true)
        };
        let evicted = BoxState {
            ending: Some(Ending::Evicted {
                message: "2 of 1".into(),
            }),
            ..state(true)
        };
        for (case, state, container, termination, code, reason) in [
            (
                "by itself",
                state(true),
                gone(3, "Error"),
                Some(termination(3, false)),
                3,
                ExitReason::Exited,
            ),
            (
                "with a forged report",
                state(true),
                gone(7, "Error"),
                Some(termination(0, true)),
                7,
                ExitReason::Exited,
            ),
            (
                "killed after its report",
                stopped.clone(),
                gone(137, "Error"),
                Some(termination(0, false)),
                137,
                ExitReason::Stopped,
            ),
            (
                "without a report",
                state(true),
                gone(3, "Error"),
                None,
                3,
                ExitReason::NodeLost,
            ),
            (
                "its command OOM-killed",
                state(true),
                gone(137, "Error"),
                Some(termination(137, true)),
                137,
                ExitReason::OomKilled,
            ),
            (
                "boxd OOM-killed",
                state(true),
                gone(137, "OOMKilled"),
                None,
                137,
                ExitReason::OomKilled,
            ),
            (
                "a child OOM-killed before",
                state(true),
                gone(0, "OOMKilled"),
                Some(termination(0, false)),
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
                state(true),
                gone(255, "Unknown"),
                None,
                255,
                ExitReason::NodeLost,
            ),
            (
                "vanished",
                state(true),
                ObservedContainer::Absent,
                None,
                137,
                ExitReason::NodeLost,
            ),
            (
                "stopped and vanished",
                stopped,
                ObservedContainer::Absent,
                None,
                137,
                ExitReason::Stopped,
            ),
        ] {
            match phase_of(state, container, termination) {
                BoxPhase::Exited {
                    exit_code,
                    reason: got,
                    ..
                } => {
                    assert_eq!((exit_code, got), (code, reason), "{case}");
                }
                other => panic!("{case}: {other:?}"),
            }
        }
        match phase_of(evicted, gone(137, ""), None) {
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
    fn container_that_ends_without_a_report_before_boxd_answers_has_failed_to_start() {
        let ended = |exit_code, reason: &str| ContainerStatus {
            exit_code,
            reason: reason.to_owned(),
            ..Default::default()
        };
        let failure = failed_start(&ended(1, "Error"), None).unwrap();
        assert_eq!(failure.reason, FailureReason::ImageInvalid);
        assert!(failure.message.contains("code 1"), "{}", failure.message);
        let reported = termination(1, false);
        assert_eq!(failed_start(&ended(1, "Error"), Some(&reported)), None);
        for (code, reason) in [
            (137, "Error"),
            (137, "OOMKilled"),
            (255, "Unknown"),
            (128, "StartError"),
        ] {
            assert_eq!(failed_start(&ended(code, reason), None), None, "{reason}");
        }
    }

    #[test]
    fn recorded_failure_takes_precedence() {
        let failure = Failure {
            reason: FailureReason::ImagePull,
            message: "no".into(),
        };
        let failed = BoxState {
            failure: Some(failure),
            ..state(false)
        };
        assert!(matches!(
            phase_of(failed, ObservedContainer::Absent, None),
            BoxPhase::Failed {
                reason: FailureReason::ImagePull,
                ..
            }
        ));
    }

    #[test]
    fn box_without_state_is_starting() {
        let observation = Observation {
            state: None,
            container: ObservedContainer::Running,
            termination: None,
            out_of_memory: false,
        };
        assert!(matches!(phase(&observation), BoxPhase::Starting { .. }));
    }

    #[test]
    fn box_killed_as_a_whole_by_the_oom_killer_is_oom_killed() {
        for (out_of_memory, code, expected) in [
            (true, KILLED, ExitReason::OomKilled),
            (true, 1, ExitReason::NodeLost),
            (false, KILLED, ExitReason::NodeLost),
        ] {
            let phase = phase(&Observation {
                state: Some(state(true)),
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
