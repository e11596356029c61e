//! The states of an environment and the only ways between them. Pure.
//!
//! ```text
//! pending ──▶ running ──▶ terminating ──▶ terminated
//!    │  │        │ │           ▲
//!    │  └────────┼─┼───────────┘
//!    └──▶ failed ◀─┘─▶ terminated (its command ended with 0)
//! ```
//!
//! * I1. Nothing leaves `terminated` or `failed`.
//! * I2. What has been running is never pending again: a box's data do not come back.
//! * I3. An ended environment has a reason and an end, and no address.
//! * I4. The first reason to terminate stays; a later one only speeds it up.

use std::net::SocketAddr;

use agentbox_contracts::environment::{EventKind, Status, StatusReason};
use agentbox_runtime::{ExitReason, FailureReason};
use chrono::{DateTime, Utc};

/// The part of an environment that transitions change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub status: Status,
    pub reason: Option<StatusReason>,
    pub message: Option<String>,
    pub exit_code: Option<i32>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub address: Option<SocketAddr>,
}

impl Standing {
    /// As it is created.
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

/// Why somebody wants an environment to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    Deleted,
    Expired,
}

/// What happened to an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// Its box serves.
    Started {
        address: SocketAddr,
        at: DateTime<Utc>,
    },
    /// Its box will never serve.
    NotStarted {
        reason: StatusReason,
        message: String,
    },
    /// Its main command ended without being told to. `started_at` serves when nobody
    /// saw it running.
    Exited {
        exit_code: i32,
        reason: ExitReason,
        message: String,
        started_at: DateTime<Utc>,
        at: DateTime<Utc>,
    },
    /// The cluster knows nothing of a box that ran.
    Vanished,
    /// A user, or its lifetime, ends it.
    EndWanted(EndReason),
    /// Nothing is left of its box. `exit_code` if its command had one.
    Removed { exit_code: Option<i32> },
}

/// How a failure to start shows.
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

/// How an end that nobody asked for shows.
#[must_use]
pub const fn exit_reason(reason: ExitReason) -> StatusReason {
    match reason {
        // Stopped, but not by us: somebody at the cluster did it.
        ExitReason::Exited | ExitReason::Stopped => StatusReason::Exited,
        ExitReason::OomKilled => StatusReason::OomKilled,
        ExitReason::Evicted => StatusReason::Evicted,
        ExitReason::NodeLost => StatusReason::NodeLost,
    }
}

const fn end_words(reason: EndReason) -> (StatusReason, &'static str) {
    match reason {
        EndReason::Deleted => (StatusReason::Deleted, "it was deleted"),
        EndReason::Expired => (StatusReason::Expired, "its timeout was reached"),
    }
}

fn text(message: &str) -> Option<String> {
    (!message.is_empty()).then(|| message.to_owned())
}

/// Where `happening` leads. `None`: it changes nothing, or cannot happen any more.
#[must_use]
pub fn transition(
    now: DateTime<Utc>,
    current: &Standing,
    happening: &Happening,
) -> Option<Standing> {
    let mut next = current.clone();
    match (current.status, happening) {
        (Status::Pending, Happening::Started { address, at }) => {
            next.status = Status::Running;
            next.reason = None;
            next.message = None;
            next.started_at = Some(*at);
            next.address = Some(*address);
        }
        (Status::Pending, Happening::NotStarted { reason, message }) => {
            next.status = Status::Failed;
            next.reason = Some(*reason);
            next.message = text(message);
        }
        (
            Status::Pending | Status::Running,
            Happening::Exited {
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
            next.message =
                text(message).or_else(|| Some(format!("the command ended with {exit_code}")));
            next.exit_code = Some(*exit_code);
            next.started_at = current.started_at.or(Some((*started_at).min(*at)));
            next.ended_at = Some(*at);
        }
        (Status::Running, Happening::Vanished) => {
            next.status = Status::Failed;
            next.reason = Some(StatusReason::NodeLost);
            next.message = text("its cluster has lost the box, and what was in it");
        }
        (Status::Pending | Status::Running, Happening::EndWanted(reason)) => {
            let (reason, words) = end_words(*reason);
            next.status = Status::Terminating;
            next.reason = Some(reason);
            next.message = text(words);
        }
        (Status::Terminating, Happening::Removed { exit_code }) => {
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

/// The event that tells of having arrived in `status`.
#[must_use]
pub const fn event_of(status: Status) -> EventKind {
    match status {
        Status::Pending => EventKind::Created,
        Status::Running => EventKind::Running,
        Status::Terminating => EventKind::Terminating,
        Status::Terminated => EventKind::Terminated,
        Status::Failed => EventKind::Failed,
    }
}
