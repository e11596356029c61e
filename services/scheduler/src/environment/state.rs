//! The states of an environment and the only transitions between them. Pure.
//!
//! ```text
//! pending ──▶ running ──▶ terminating ──▶ terminated
//!    │  │        │ │           ▲
//!    │  └────────┼─┼───────────┘
//!    └──▶ failed ◀─┘─▶ terminated (its command exited with 0)
//! ```
//!
//! * I1. `terminated` and `failed` are final.
//! * I2. An environment that has run is never pending again, because the data of its box
//!   cannot be restored.
//! * I3. An ended environment has a reason and an end time, and no address.
//! * I4. The first reason to terminate is kept.

use std::net::SocketAddr;

use agentbox_contracts::environment::{EventKind, Status, StatusReason};
use agentbox_runtime::{ExitReason, FailureReason};
use chrono::{DateTime, Utc};

#[cfg(test)]
mod tests;

/// The part of an environment that transitions change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifecycleState {
    pub status: Status,
    pub reason: Option<StatusReason>,
    pub message: Option<String>,
    pub exit_code: Option<i32>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub address: Option<SocketAddr>,
}

impl LifecycleState {
    /// The state of a new environment.
    #[must_use]
    pub fn pending(message: Option<String>) -> Self {
        Self {
            status: Status::Pending,
            reason: None,
            message,
            exit_code: None,
            started_at: None,
            ended_at: None,
            address: None,
        }
    }
}

/// Why an environment is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    Deleted,
    Expired,
    /// It was idle for its idle timeout.
    Idle,
    /// It was left in a cluster at the deadline of a drain.
    Drained,
}

/// Something that happened to an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LifecycleEvent {
    /// Its box is running.
    Started {
        address: SocketAddr,
        at: DateTime<Utc>,
    },
    /// Its box cannot be started.
    StartFailed {
        reason: StatusReason,
        message: String,
    },
    /// Its main command exited without being stopped. `started_at` is used when the box
    /// was never observed running.
    Exited {
        exit_code: i32,
        reason: ExitReason,
        message: String,
        started_at: DateTime<Utc>,
        at: DateTime<Utc>,
    },
    /// The cluster has no box of an environment that was running.
    Lost,
    /// A user, one of the environment's timeouts or an operator ends it.
    EndRequested(EndReason),
    /// Its box is removed. `exit_code`: of its main command, if that ran.
    Removed { exit_code: Option<i32> },
}

/// The status reason of a box that failed to start.
#[must_use]
pub const fn start_reason(reason: FailureReason) -> StatusReason {
    match reason {
        FailureReason::ImagePull => StatusReason::ImagePull,
        FailureReason::ImageInvalid => StatusReason::ImageInvalid,
        FailureReason::Unschedulable => StatusReason::Unschedulable,
        FailureReason::Quota => StatusReason::Quota,
        FailureReason::RuntimeClass => StatusReason::RuntimeClass,
    }
}

/// The status reason of a box that exited although the scheduler did not stop it.
#[must_use]
pub const fn exit_reason(reason: ExitReason) -> StatusReason {
    match reason {
        // Stopped, but not by the scheduler: by an operator of the cluster.
        ExitReason::Exited | ExitReason::Stopped => StatusReason::Exited,
        ExitReason::OomKilled => StatusReason::OomKilled,
        ExitReason::Evicted => StatusReason::Evicted,
        ExitReason::NodeLost => StatusReason::NodeLost,
    }
}

const fn end_reason(reason: EndReason) -> (StatusReason, &'static str) {
    match reason {
        EndReason::Deleted => (StatusReason::Deleted, "the environment was deleted"),
        EndReason::Expired => (StatusReason::Expired, "the environment reached its timeout"),
        EndReason::Idle => (
            StatusReason::Expired,
            "the environment was idle for its idle_timeout",
        ),
        EndReason::Drained => (
            StatusReason::Evicted,
            "the environment was ended because an operator drained its cluster",
        ),
    }
}

fn non_empty(message: &str) -> Option<String> {
    (!message.is_empty()).then(|| message.to_owned())
}

/// The state after `event`. `None`: the event changes nothing in this state.
#[must_use]
pub fn transition(
    now: DateTime<Utc>,
    current: &LifecycleState,
    event: &LifecycleEvent,
) -> Option<LifecycleState> {
    let mut next = current.clone();
    match (current.status, event) {
        (Status::Pending, LifecycleEvent::Started { address, at }) => {
            next.status = Status::Running;
            next.reason = None;
            next.message = None;
            next.started_at = Some(*at);
            next.address = Some(*address);
        }
        (Status::Pending, LifecycleEvent::StartFailed { reason, message }) => {
            next.status = Status::Failed;
            next.reason = Some(*reason);
            next.message = non_empty(message);
        }
        (
            Status::Pending | Status::Running,
            LifecycleEvent::Exited {
                exit_code,
                reason,
                message,
                started_at,
                at,
            },
        ) => {
            let by_itself = matches!(reason, ExitReason::Exited);
            next.status = if by_itself && *exit_code == 0 {
                Status::Terminated
            } else {
                Status::Failed
            };
            next.reason = Some(exit_reason(*reason));
            next.message = non_empty(message)
                .or_else(|| Some(format!("the command exited with code {exit_code}")));
            // How the command of a lost box ended is unknown.
            next.exit_code = (*reason != ExitReason::NodeLost).then_some(*exit_code);
            next.started_at = current.started_at.or(Some((*started_at).min(*at)));
            next.ended_at = Some(*at);
        }
        (Status::Running, LifecycleEvent::Lost) => {
            next.status = Status::Failed;
            next.reason = Some(StatusReason::NodeLost);
            next.message = non_empty("the cluster lost the box and the data in it");
        }
        (Status::Pending | Status::Running, LifecycleEvent::EndRequested(reason)) => {
            let (reason, message) = end_reason(*reason);
            next.status = Status::Terminating;
            next.reason = Some(reason);
            next.message = non_empty(message);
        }
        (Status::Terminating, LifecycleEvent::Removed { exit_code }) => {
            next.status = Status::Terminated;
            next.exit_code = *exit_code;
        }
        _ => return None,
    }
    if next.status.is_ended() {
        next.ended_at = next.ended_at.or(Some(now));
        next.address = None;
    }
    Some(next)
}

/// Why a user cannot change an environment with this status. `None`: the user can.
#[must_use]
pub const fn patch_refusal(status: Status) -> Option<&'static str> {
    match status {
        Status::Pending | Status::Running => None,
        Status::Terminating => Some("the environment is terminating and cannot be changed"),
        Status::Terminated | Status::Failed => {
            Some("the environment has ended and cannot be changed")
        }
    }
}

/// The kind of the event that is published when an environment enters `status`.
#[must_use]
pub const fn event_kind(status: Status) -> EventKind {
    match status {
        Status::Pending => EventKind::Created,
        Status::Running => EventKind::Running,
        Status::Terminating => EventKind::Terminating,
        Status::Terminated => EventKind::Terminated,
        Status::Failed => EventKind::Failed,
    }
}
