//! The next step for one environment. Pure: the reconciler carries it out, observes the
//! box, and asks again.
//!
//! * I1. A box is only ever created for a pending environment, so never a second time for
//!   one that ran.
//! * I2. From any observation, repeating the plan leads to the requested state or to an
//!   ended one.
//! * I3. The box of a claim that is pending is claimed before it is observed: an observation does not
//!   show whether it is configured.
//! * I4. The plan of an ended environment is not [`Plan::Done`] before its box is removed.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_runtime::{BoxPhase, ExitReason, IMAGE_PULL, Observed, RuntimeError};
use chrono::{DateTime, TimeDelta, Utc};

use crate::environment::state::{LifecycleEvent, start_reason};
use crate::environment::warm_claim::WarmClaim;

#[cfg(test)]
mod tests;

/// The requested state of one environment, as its row has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    pub status: Status,
    pub created_at: DateTime<Utc>,
    /// From then on a pending environment has failed.
    pub start_deadline: DateTime<Utc>,
    /// Capacity is reserved for it in its cluster.
    pub capacity_reserved: bool,
    /// When its end was requested.
    pub terminating_at: Option<DateTime<Utc>>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// The box of an ended environment was removed.
    pub box_removed: bool,
    /// The network policy was changed, and its box may not have it yet.
    pub network_policy_pending: bool,
    /// What is left to do for the claim of its warm box.
    pub claim: Option<WarmClaim>,
    /// The error of the last attempt to start it.
    pub last_error: Option<String>,
}

/// The cluster's report about its box.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// The cluster was not asked yet.
    Unknown,
    /// The cluster has no such box.
    Absent,
    Present(Observed),
}

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// It is in its requested state.
    Done,
    /// Ask the cluster for the box.
    Observe,
    /// Reserve capacity in its cluster.
    ReserveCapacity,
    /// Create the box; the driver's answer is the next observation.
    Ensure,
    /// Configure the warm box at this address, or give it up and start another one.
    Claim { address: SocketAddr },
    /// Make the cluster record the claim of the running box.
    RecordClaim,
    /// Plan again after this time, or when the cluster reports a change.
    RequeueAfter(Duration),
    /// Replace the network policy of the running box.
    ApplyNetworkPolicy,
    /// Archive its executions, stop its processes, then observe again.
    Stop { grace: Duration },
    /// Archive the box's last output and its executions, remove the box, and record the event.
    Finalize {
        archive: Archive,
        removal: Removal,
        event: LifecycleEvent,
    },
    /// Record the event.
    Transition(LifecycleEvent),
    /// Remove the box of an ended environment.
    Remove,
}

/// Whether the last output is archived before the box is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    /// There is no output.
    Skip,
    /// Try until this time; after it, continue without an archive.
    Until(DateTime<Utc>),
}

/// Whether the box is removed before the transition is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Users wait for the exit of the command, not for the removal.
    AfterTransition,
    /// `terminated` promises that the box is removed.
    BeforeTransition,
}

/// How long an end waits for an archive that cannot be written.
pub const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds of the delay. Usually the cluster's watch is faster; these are for a missed change.
const MIN_REQUEUE_DELAY: Duration = Duration::from_millis(250);
const MAX_REQUEUE_DELAY: Duration = Duration::from_secs(2);

/// How long a pull that may succeed later is tried again.
const PULL_RETRY_PERIOD: TimeDelta = TimeDelta::seconds(20);

/// After an error of a cluster that does not decide how the environment ends.
const ERROR_REQUEUE_DELAY: Duration = Duration::from_secs(1);

/// A tenth of the environment's age, within bounds.
fn requeue_delay(intent: &Intent, now: DateTime<Utc>) -> Duration {
    let age = (now - intent.created_at).to_std().unwrap_or_default();
    (age / 10).clamp(MIN_REQUEUE_DELAY, MAX_REQUEUE_DELAY)
}

/// [`ARCHIVE_TIMEOUT`] and `grace` after `begin`.
fn archive_deadline(begin: DateTime<Utc>, grace: Duration) -> Archive {
    let timeout = TimeDelta::from_std(ARCHIVE_TIMEOUT + grace).unwrap_or(TimeDelta::MAX);
    Archive::Until(
        begin
            .checked_add_signed(timeout)
            .unwrap_or(DateTime::<Utc>::MAX_UTC),
    )
}

/// The next step for an environment.
#[must_use]
pub fn plan(intent: &Intent, observation: &Observation, now: DateTime<Utc>) -> Plan {
    match intent.status {
        Status::Pending => plan_pending(intent, observation, now),
        Status::Running => plan_running(intent, observation),
        Status::Terminating => plan_terminating(intent, observation, now),
        Status::Terminated | Status::Failed if intent.box_removed => Plan::Done,
        Status::Terminated | Status::Failed => Plan::Remove,
    }
}

fn plan_pending(intent: &Intent, observation: &Observation, now: DateTime<Utc>) -> Plan {
    let is_late = now >= intent.start_deadline;
    if let (Observation::Unknown, Some(WarmClaim::Pending { address })) =
        (observation, &intent.claim)
    {
        return Plan::Claim { address: *address };
    }
    match observation {
        Observation::Unknown if is_late => Plan::Observe,
        Observation::Unknown if !intent.capacity_reserved => Plan::ReserveCapacity,
        Observation::Unknown => Plan::Ensure,
        Observation::Absent if is_late => Plan::Transition(start_timed_out(intent, None)),
        Observation::Absent => Plan::Ensure,
        Observation::Present(observed) => match &observed.phase {
            BoxPhase::Running {
                address,
                started_at,
            } => Plan::Transition(LifecycleEvent::Started {
                address: *address,
                at: *started_at,
            }),
            BoxPhase::Starting { message } if is_late => {
                Plan::Transition(start_timed_out(intent, Some(message)))
            }
            BoxPhase::Starting { .. } => Plan::RequeueAfter(requeue_delay(intent, now)),
            BoxPhase::Failed { reason, message } => Plan::Transition(LifecycleEvent::StartFailed {
                reason: start_reason(*reason),
                message: message.clone(),
            }),
            BoxPhase::Exited {
                exit_code,
                reason,
                message,
                finished_at,
            } => finalize_exit(observed, *exit_code, *reason, message, *finished_at),
        },
    }
}

/// The start deadline has passed; `message` is the newest reason, if there is one.
fn start_timed_out(intent: &Intent, message: Option<&String>) -> LifecycleEvent {
    let cause = message
        .or(intent.last_error.as_ref())
        .filter(|cause| !cause.is_empty());
    let with_cause =
        |text: &str| cause.map_or_else(|| text.to_owned(), |cause| format!("{text}: {cause}"));
    if intent.capacity_reserved {
        LifecycleEvent::StartFailed {
            reason: StatusReason::StartTimeout,
            message: with_cause("the box did not start within the start timeout"),
        }
    } else {
        LifecycleEvent::StartFailed {
            reason: StatusReason::Unschedulable,
            message: with_cause("no capacity became available within the start timeout"),
        }
    }
}

fn plan_running(intent: &Intent, observation: &Observation) -> Plan {
    match observation {
        Observation::Unknown => Plan::Observe,
        Observation::Absent => Plan::Transition(LifecycleEvent::Lost),
        Observation::Present(observed) => match &observed.phase {
            BoxPhase::Running { .. } if intent.claim.is_some() => Plan::RecordClaim,
            BoxPhase::Running { .. } if intent.network_policy_pending => Plan::ApplyNetworkPolicy,
            BoxPhase::Running { .. } => Plan::Done,
            BoxPhase::Exited {
                exit_code,
                reason,
                message,
                finished_at,
            } => finalize_exit(observed, *exit_code, *reason, message, *finished_at),
            // Created again, and not by the scheduler: the first box is lost.
            BoxPhase::Starting { .. } | BoxPhase::Failed { .. } => {
                Plan::Transition(LifecycleEvent::Lost)
            }
        },
    }
}

/// The main command exited by itself. Users see the exit once the last output is archived.
fn finalize_exit(
    observed: &Observed,
    exit_code: i32,
    reason: ExitReason,
    message: &str,
    finished_at: DateTime<Utc>,
) -> Plan {
    Plan::Finalize {
        archive: archive_deadline(finished_at, Duration::ZERO),
        removal: Removal::AfterTransition,
        event: LifecycleEvent::Exited {
            exit_code,
            reason,
            message: message.to_owned(),
            started_at: observed.created_at,
            at: finished_at,
        },
    }
}

fn plan_terminating(intent: &Intent, observation: &Observation, now: DateTime<Utc>) -> Plan {
    let finalize = |archive, exit_code| Plan::Finalize {
        archive,
        removal: Removal::BeforeTransition,
        event: LifecycleEvent::Removed { exit_code },
    };
    match observation {
        Observation::Unknown => Plan::Observe,
        Observation::Absent => Plan::Transition(LifecycleEvent::Removed { exit_code: None }),
        Observation::Present(observed) => match &observed.phase {
            BoxPhase::Running { .. } => Plan::Stop {
                grace: intent.grace,
            },
            BoxPhase::Exited {
                exit_code, reason, ..
            } => {
                let begin = intent.terminating_at.unwrap_or(now);
                // How the command of a lost box ended is unknown.
                let exit_code = (*reason != ExitReason::NodeLost).then_some(*exit_code);
                finalize(archive_deadline(begin, intent.grace), exit_code)
            }
            BoxPhase::Starting { .. } | BoxPhase::Failed { .. } => finalize(Archive::Skip, None),
        },
    }
}

/// The next step after the cluster refused to create or to report the box.
#[must_use]
pub fn plan_after_error(intent: &Intent, error: &RuntimeError, now: DateTime<Utc>) -> Plan {
    if intent.status != Status::Pending {
        return Plan::RequeueAfter(ERROR_REQUEUE_DELAY);
    }
    let message = error.user_message();
    if now >= intent.start_deadline {
        return Plan::Transition(start_timed_out(intent, Some(&message)));
    }
    let is_pull = matches!(
        error,
        RuntimeError::Cluster {
            operation: IMAGE_PULL,
            ..
        }
    );
    if is_pull && now - intent.created_at >= PULL_RETRY_PERIOD {
        return Plan::Transition(LifecycleEvent::StartFailed {
            reason: StatusReason::ImagePull,
            message,
        });
    }
    Plan::RequeueAfter(requeue_delay(intent, now))
}
