//! Decides a box's phase from its Pod, its node and its recorded state. Pure.
//!
//! The recorded state takes precedence over Kubernetes': only it knows that the driver stopped a
//! box, and a Pod that is gone has no status.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_box_protocol::termination::Termination;
use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_runtime::image_pull::without_paths;
use agentbox_runtime::{BoxPhase, ExitReason, FailureReason, start_failure};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{
    ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod, PodCondition, PodStatus,
};

use crate::blocked::{self, Blocked};
use crate::box_state::{BoxState, Failure};
use crate::objects::MAIN;
use crate::timestamps::from_kubernetes;

/// 128 + SIGKILL.
const KILLED: i32 = 137;

/// How long a condition must last before it ends or fails a box.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    pub image_pull: Duration,
    pub unschedulable: Duration,
    pub node_lost: Duration,
}

/// The inputs of the decision about one box.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    pub state: &'a BoxState,
    pub pod: Option<&'a Pod>,
    /// Since when the Pod's node has not been ready, if it is not.
    pub node_unready_since: Option<DateTime<Utc>>,
    pub now: DateTime<Utc>,
    pub deadlines: Deadlines,
}

pub fn phase(observation: &Observation<'_>) -> BoxPhase {
    if let Some(Failure { reason, message }) = &observation.state.failure {
        return BoxPhase::Failed {
            reason: *reason,
            message: message.clone(),
        };
    }
    let Some(pod) = observation.pod else {
        return if observation.state.started_at.is_some() || observation.state.is_stopped {
            gone(observation)
        } else {
            starting("the Pod is not created yet")
        };
    };
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let main = main_status(status);
    let state = main.and_then(|main| main.state.as_ref());
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        return terminated(observation, status, ended);
    }
    if status.phase.as_deref() == Some("Failed") {
        return without_container(observation, status);
    }
    if let Some(running) = state.and_then(|state| state.running.as_ref()) {
        let started_at = running
            .started_at
            .as_ref()
            .map(from_kubernetes)
            .unwrap_or_default();
        return match status.pod_ip.as_deref().map(str::parse) {
            Some(Ok(ip)) if !is_lost(observation) => BoxPhase::Running {
                address: SocketAddr::new(ip, DEFAULT_PORT),
                started_at,
            },
            Some(Ok(_)) => lost(observation),
            _ => starting("the Pod has no address yet"),
        };
    }
    if is_lost(observation) && observation.state.started_at.is_some() {
        return lost(observation);
    }
    waiting(observation, pod, status)
}

/// What boxd has written for its end, if the kubelet has reported the end of the main container; empty if
/// boxd has written nothing.
pub fn end_report(pod: &Pod) -> Option<&str> {
    let state = main_status(pod.status.as_ref()?)?.state.as_ref()?;
    let ended = state.terminated.as_ref()?;
    Some(ended.message.as_deref().unwrap_or_default())
}

pub fn main_status(status: &PodStatus) -> Option<&ContainerStatus> {
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    statuses.iter().find(|status| status.name == MAIN)
}

fn starting(message: &str) -> BoxPhase {
    BoxPhase::Starting {
        message: message.to_owned(),
    }
}

fn failed(reason: FailureReason, message: impl Into<String>) -> BoxPhase {
    BoxPhase::Failed {
        reason,
        message: message.into(),
    }
}

fn is_lost(observation: &Observation<'_>) -> bool {
    observation
        .node_unready_since
        .is_some_and(|since| elapsed(since, observation.now) >= observation.deadlines.node_lost)
}

fn elapsed(since: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - since).to_std().unwrap_or_default()
}

/// The phase of a box that ran and whose Pod was deleted: by the driver, or by another client.
fn gone(observation: &Observation<'_>) -> BoxPhase {
    let (reason, message) = if observation.state.is_stopped {
        (ExitReason::Stopped, "")
    } else {
        (ExitReason::NodeLost, "the Pod is gone")
    };
    BoxPhase::Exited {
        exit_code: KILLED,
        reason,
        message: message.to_owned(),
        finished_at: observation
            .state
            .started_at
            .unwrap_or(observation.state.created_at),
    }
}

/// The phase of a box whose node has not been ready for too long.
fn lost(observation: &Observation<'_>) -> BoxPhase {
    BoxPhase::Exited {
        exit_code: KILLED,
        reason: ExitReason::NodeLost,
        message: "the box's node does not answer".to_owned(),
        finished_at: observation.node_unready_since.unwrap_or(observation.now),
    }
}

/// The reason for which Kubernetes ended the Pod; `None` when the Pod ended by itself.
fn disruption(status: &PodStatus) -> Option<(ExitReason, String)> {
    let message_or = |fallback: &str| {
        let message = status.message.clone().filter(|text| !text.is_empty());
        message.unwrap_or_else(|| fallback.to_owned())
    };
    match status.reason.as_deref() {
        Some("Evicted") => return Some((ExitReason::Evicted, message_or("evicted"))),
        Some("NodeLost" | "NodeShutdown" | "Shutdown" | "Terminated") => {
            return Some((ExitReason::NodeLost, message_or("the node was shut down")));
        }
        _ => {}
    }
    let target = condition(status, "DisruptionTarget")?;
    let why = target.message.clone().unwrap_or_default();
    Some(match target.reason.as_deref() {
        Some("DeletionByTaintManager" | "DeletionByPodGC") => (ExitReason::NodeLost, why),
        _ => (ExitReason::Evicted, why),
    })
}

/// The condition of this kind, if it is true. Of `PodScheduled` the false one counts too: its message is
/// why no node takes the Pod.
fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition.type_ == kind);
    found.filter(|condition| kind == "PodScheduled" || condition.status == "True")
}

/// The phase of a box whose main container has ended.
fn terminated(
    observation: &Observation<'_>,
    status: &PodStatus,
    ended: &ContainerStateTerminated,
) -> BoxPhase {
    let kubelet_reason = ended.reason.as_deref().unwrap_or_default();
    let text = ended.message.clone().unwrap_or_default();
    let termination: Option<Termination> = serde_json::from_str(&text).ok();
    if termination.is_none() && matches!(kubelet_reason, "StartError" | "ContainerCannotRun") {
        let image = observation
            .pod
            .map_or("", |pod| blocked::image_of(pod, MAIN));
        let cause = start_failure::describe(&text);
        return failed(
            FailureReason::ImageInvalid,
            start_failure::cannot_run(image, cause),
        );
    }
    // boxd exits with the code of its command. A report with another code was changed by a process of
    // the box, or boxd was killed after it: the runtime's code counts.
    let exit_code = ended.exit_code;
    let agreed = termination
        .as_ref()
        .filter(|report| report.exit_code == exit_code);
    let oom_killed = match agreed {
        Some(report) => report.oom_killed,
        // boxd itself was killed.
        None => kubelet_reason == "OOMKilled" && exit_code == KILLED,
    };
    let (reason, message) = if observation.state.is_stopped {
        (ExitReason::Stopped, String::new())
    } else if let Some(disrupted) = disruption(status) {
        disrupted
    } else if oom_killed {
        (
            ExitReason::OomKilled,
            "the main command exceeded the memory limit".to_owned(),
        )
    } else if kubelet_reason == "ContainerStatusUnknown" {
        (ExitReason::NodeLost, "the container is gone".to_owned())
    } else if termination.is_some() {
        let message = agreed.map(|report| report.message.clone());
        (ExitReason::Exited, message.unwrap_or_default())
    } else if observation.state.started_at.is_none() && exit_code != KILLED {
        // boxd reports the end of every command: the kernel could not execute boxd, or boxd could
        // not start.
        return failed(
            FailureReason::ImageInvalid,
            format!("the box could not start: it ended with code {exit_code} before its command"),
        );
    } else {
        // The code is the box's own, not the command's.
        (
            ExitReason::NodeLost,
            format!(
                "the box ended with code {exit_code} and did not report the end of its command"
            ),
        )
    };
    BoxPhase::Exited {
        exit_code,
        reason,
        message,
        finished_at: ended
            .finished_at
            .as_ref()
            .map(from_kubernetes)
            .unwrap_or_default(),
    }
}

/// The phase of a failed Pod without a container status: its container never started, or was
/// removed.
fn without_container(observation: &Observation<'_>, status: &PodStatus) -> BoxPhase {
    let message = status.message.clone().unwrap_or_default();
    if observation.state.is_stopped {
        return gone(observation);
    }
    if let Some((reason, message)) = disruption(status) {
        return BoxPhase::Exited {
            exit_code: KILLED,
            reason,
            message,
            finished_at: observation.now,
        };
    }
    if observation.state.started_at.is_some() {
        return gone(observation);
    }
    let inits = status
        .init_container_statuses
        .as_deref()
        .unwrap_or_default();
    let failed_init = inits.iter().find_map(|init| {
        let ended = init.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then_some(ended)
    });
    if let Some(ended) = failed_init {
        let why = ended.reason.as_deref().unwrap_or_default();
        return failed(
            FailureReason::ImageInvalid,
            format!("boxd could not be installed: {why}"),
        );
    }
    // OutOfcpu, NodeAffinity, UnexpectedAdmissionError, …: the node rejected the Pod. It may admit
    // the next one, so the box fails only at the deadline.
    let why = status.reason.clone().unwrap_or_default();
    let message = without_paths(&format!("{why}: {message}"));
    if elapsed(observation.state.created_at, observation.now) >= observation.deadlines.unschedulable
    {
        failed(FailureReason::Unschedulable, message)
    } else {
        starting(&message)
    }
}

/// Whether the node rejected the Pod before any of its containers ran. `ensure` replaces such a
/// Pod.
pub fn is_rejected_by_node(pod: &Pod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    let ran = |statuses: &Option<Vec<ContainerStatus>>| {
        statuses.iter().flatten().any(|container| {
            let state = container.state.as_ref();
            state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        })
    };
    status.phase.as_deref() == Some("Failed")
        && status
            .reason
            .as_deref()
            .is_some_and(|reason| !reason.is_empty())
        && disruption(status).is_none()
        && !ran(&status.init_container_statuses)
        && !ran(&status.container_statuses)
}

/// The kubelet's own text about the container that did not start, for the log only.
pub fn start_error(pod: &Pod) -> Option<String> {
    if let Some(blocked) = blocked(pod) {
        return Some(blocked.detail);
    }
    let status = pod.status.as_ref()?;
    let inits = status.init_container_statuses.iter().flatten();
    let mains = status.container_statuses.iter().flatten();
    inits.chain(mains).find_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        ended.message.clone()
    })
}

/// The first container that waits after a failure.
pub fn blocked(pod: &Pod) -> Option<Blocked> {
    let status = pod.status.as_ref()?;
    containers_waiting(status)
        .find_map(|(name, reason, message)| blocked::classify(pod, name, reason, message))
}

/// The name, reason and message of each waiting container, in the order of their starts.
fn containers_waiting(status: &PodStatus) -> impl Iterator<Item = (&str, &str, &str)> {
    let inits = status.init_container_statuses.iter().flatten();
    let mains = status.container_statuses.iter().flatten();
    inits.chain(mains).filter_map(|container| {
        let ContainerStateWaiting { reason, message } =
            container.state.as_ref()?.waiting.as_ref()?;
        Some((
            container.name.as_str(),
            reason.as_deref().unwrap_or_default(),
            message.as_deref().unwrap_or_default(),
        ))
    })
}

/// The phase of a box whose main container has not started yet.
fn waiting(observation: &Observation<'_>, pod: &Pod, status: &PodStatus) -> BoxPhase {
    if let Some(blocked) = blocked(pod) {
        let since = observation.state.blocked.as_ref();
        let since = since.filter(|known| known.key == blocked.key);
        let lasted = since.map(|known| elapsed(known.since, observation.now));
        return match blocked.failed(lasted, observation.deadlines.image_pull) {
            Some(failure) => failed(failure.reason, failure.message),
            None => starting(&blocked.progress()),
        };
    }
    let unusual = containers_waiting(status)
        .find(|(_, reason, _)| !matches!(*reason, "" | "PodInitializing" | "ContainerCreating"));
    if let Some((_, reason, _)) = unusual {
        return starting(reason);
    }
    match condition(status, "PodScheduled") {
        Some(scheduled) if scheduled.status == "False" => {
            let created = pod
                .metadata
                .creation_timestamp
                .as_ref()
                .map(from_kubernetes);
            let message = scheduled.message.clone().unwrap_or_default();
            if elapsed(created.unwrap_or(observation.now), observation.now)
                >= observation.deadlines.unschedulable
            {
                failed(FailureReason::Unschedulable, message)
            } else {
                starting(&message)
            }
        }
        Some(_) => starting("the node sets up the sandbox or pulls the image"),
        None => starting("waiting for a node"),
    }
}

#[cfg(test)]
mod tests;
