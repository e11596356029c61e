//! What Kubernetes and the facts say, as the seam's phase. Pure.
//!
//! Facts of ours go before what Kubernetes says: only we know that we stopped a box, and a
//! Pod that is gone tells nothing.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_box_protocol::termination::Termination;
use agentbox_box_protocol::variables::DEFAULT_PORT;
use agentbox_runtime::{BoxPhase, ExitReason, FailureReason};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{
    ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod, PodCondition, PodStatus,
};

use crate::facts::{Facts, Failure};
use crate::image::{self, Blocked};
use crate::objects::MAIN;
use crate::observe::instant;

/// 128 + SIGKILL.
const KILLED: i32 = 137;

/// How long what may pass is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub image_pull: Duration,
    pub unschedulable: Duration,
    pub node_lost: Duration,
}

/// All that is known of one box.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    pub facts: &'a Facts,
    pub pod: Option<&'a Pod>,
    /// Since when the Pod's node has not been ready, if it is not.
    pub node_silent_since: Option<DateTime<Utc>>,
    pub now: DateTime<Utc>,
    pub patience: Patience,
}

pub fn phase(seen: &Seen<'_>) -> BoxPhase {
    if let Some(Failure { reason, message }) = &seen.facts.failure {
        return BoxPhase::Failed {
            reason: *reason,
            message: message.clone(),
        };
    }
    let Some(pod) = seen.pod else {
        return if seen.facts.started_at.is_some() || seen.facts.is_stopped {
            gone(seen)
        } else {
            starting("the Pod is not made yet")
        };
    };
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let main = main_status(status);
    let state = main.and_then(|main| main.state.as_ref());
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        return terminated(seen, status, ended);
    }
    if status.phase.as_deref() == Some("Failed") {
        return without_container(seen, status);
    }
    if let Some(running) = state.and_then(|state| state.running.as_ref()) {
        let started_at = running.started_at.as_ref().map(instant).unwrap_or_default();
        return match status.pod_ip.as_deref().map(str::parse) {
            Some(Ok(ip)) if !is_lost(seen) => BoxPhase::Running {
                address: SocketAddr::new(ip, DEFAULT_PORT),
                started_at,
            },
            Some(Ok(_)) => lost(seen),
            _ => starting("the Pod has no address yet"),
        };
    }
    if is_lost(seen) && seen.facts.started_at.is_some() {
        return lost(seen);
    }
    waiting(seen, pod, status)
}

fn main_status(status: &PodStatus) -> Option<&ContainerStatus> {
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

fn is_lost(seen: &Seen<'_>) -> bool {
    seen.node_silent_since
        .is_some_and(|since| waited(since, seen.now) >= seen.patience.node_lost)
}

fn waited(since: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - since).to_std().unwrap_or_default()
}

/// It ran, and its Pod was removed by somebody else, or by us to kill it.
fn gone(seen: &Seen<'_>) -> BoxPhase {
    let (reason, message) = if seen.facts.is_stopped {
        (ExitReason::Stopped, "")
    } else {
        (ExitReason::NodeLost, "the Pod is gone")
    };
    BoxPhase::Exited {
        exit_code: KILLED,
        reason,
        message: message.to_owned(),
        finished_at: seen.facts.started_at.unwrap_or(seen.facts.created_at),
    }
}

fn lost(seen: &Seen<'_>) -> BoxPhase {
    BoxPhase::Exited {
        exit_code: KILLED,
        reason: ExitReason::NodeLost,
        message: "the box's node does not answer".to_owned(),
        finished_at: seen.node_silent_since.unwrap_or(seen.now),
    }
}

/// Why Kubernetes ended the Pod, if it was not its own end.
fn disruption(status: &PodStatus) -> Option<(ExitReason, String)> {
    let said = |fallback: &str| {
        let message = status.message.clone().filter(|text| !text.is_empty());
        message.unwrap_or_else(|| fallback.to_owned())
    };
    match status.reason.as_deref() {
        Some("Evicted") => return Some((ExitReason::Evicted, said("evicted"))),
        Some("NodeLost" | "NodeShutdown" | "Shutdown" | "Terminated") => {
            return Some((ExitReason::NodeLost, said("the node was shut down")));
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

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition.type_ == kind);
    found.filter(|condition| kind == "PodScheduled" || condition.status == "True")
}

fn terminated(seen: &Seen<'_>, status: &PodStatus, ended: &ContainerStateTerminated) -> BoxPhase {
    let why = ended.reason.as_deref().unwrap_or_default();
    let told = ended.message.clone().unwrap_or_default();
    let said: Option<Termination> = serde_json::from_str(&told).ok();
    if said.is_none() && matches!(why, "StartError" | "ContainerCannotRun") {
        return failed(FailureReason::ImageInvalid, told);
    }
    let exit_code = said.as_ref().map_or(ended.exit_code, |said| said.exit_code);
    let oom_killed = match &said {
        Some(said) => said.oom_killed,
        // boxd itself was taken: it could not say so.
        None => why == "OOMKilled" && ended.exit_code == KILLED,
    };
    let (reason, message) = if seen.facts.is_stopped {
        (ExitReason::Stopped, String::new())
    } else if let Some(disrupted) = disruption(status) {
        disrupted
    } else if oom_killed {
        (
            ExitReason::OomKilled,
            "the main command went over the memory limit".to_owned(),
        )
    } else if why == "ContainerStatusUnknown" {
        (ExitReason::NodeLost, "the container is gone".to_owned())
    } else {
        (ExitReason::Exited, said.map_or(told, |said| said.message))
    };
    BoxPhase::Exited {
        exit_code,
        reason,
        message,
        finished_at: ended.finished_at.as_ref().map(instant).unwrap_or_default(),
    }
}

/// The Pod has failed and does not tell of its container: that never began, or is removed.
fn without_container(seen: &Seen<'_>, status: &PodStatus) -> BoxPhase {
    let message = status.message.clone().unwrap_or_default();
    if seen.facts.is_stopped {
        return gone(seen);
    }
    if let Some((reason, message)) = disruption(status) {
        return BoxPhase::Exited {
            exit_code: KILLED,
            reason,
            message,
            finished_at: seen.now,
        };
    }
    if seen.facts.started_at.is_some() {
        return gone(seen);
    }
    let installs = status
        .init_container_statuses
        .as_deref()
        .unwrap_or_default();
    let broken = installs.iter().find_map(|init| {
        let ended = init.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then_some(ended)
    });
    if let Some(ended) = broken {
        let why = ended.message.clone().or_else(|| ended.reason.clone());
        return failed(
            FailureReason::ImageInvalid,
            format!("boxd could not be installed: {}", why.unwrap_or_default()),
        );
    }
    // OutOfcpu, NodeAffinity, UnexpectedAdmissionError, …: its node did not admit it. Another
    // Pod may fit, so this fails the box only when it goes on.
    let why = status.reason.clone().unwrap_or_default();
    let message = format!("{why}: {message}");
    if waited(seen.facts.created_at, seen.now) >= seen.patience.unschedulable {
        failed(FailureReason::Unschedulable, message)
    } else {
        starting(&message)
    }
}

/// Whether its node refused to admit the Pod, of which nothing has run: another takes its place.
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

/// The first container that waits after a failure.
pub fn blocked(pod: &Pod) -> Option<Blocked> {
    let status = pod.status.as_ref()?;
    containers_waiting(status)
        .find_map(|(name, reason, message)| image::blocked(pod, name, reason, message))
}

/// Name, reason and message of each container that waits, in their order of start.
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

fn waiting(seen: &Seen<'_>, pod: &Pod, status: &PodStatus) -> BoxPhase {
    if let Some(blocked) = blocked(pod) {
        let since = seen.facts.blocked.as_ref();
        let since = since.filter(|known| known.key == blocked.key);
        let lasted = since.map(|known| waited(known.since, seen.now));
        return match blocked.failed(lasted, seen.patience.image_pull) {
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
            let created = pod.metadata.creation_timestamp.as_ref().map(instant);
            let message = scheduled.message.clone().unwrap_or_default();
            if waited(created.unwrap_or(seen.now), seen.now) >= seen.patience.unschedulable {
                failed(FailureReason::Unschedulable, message)
            } else {
                starting(&message)
            }
        }
        Some(_) => starting("its node sets up the sandbox or pulls the image"),
        None => starting("no node is chosen yet"),
    }
}

#[cfg(test)]
mod tests;
