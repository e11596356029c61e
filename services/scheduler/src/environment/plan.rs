//! What to do next for one environment. Pure: the reconciler carries it out, looks, and
//! asks again.
//!
//! * I1. A box is only ever made for an environment that is pending, so never twice for
//!   one that ran.
//! * I2. Whatever is seen, repeating the plan leads to the wanted state or to an end.
//! * I3. An ended environment's plan never ends before its box is gone.

use std::time::Duration;

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_runtime::{BoxPhase, Observed, RuntimeError};
use chrono::{DateTime, TimeDelta, Utc};

use crate::environment::state::{Happening, start_reason};

/// What is wanted of one environment, as its row has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    pub status: Status,
    pub created_at: DateTime<Utc>,
    /// Up to when it may be pending.
    pub start_deadline: DateTime<Utc>,
    /// Room for it was set aside in its cluster.
    pub admitted: bool,
    /// When it was told to end.
    pub terminating_at: Option<DateTime<Utc>>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Its ended box is known to be gone.
    pub box_removed: bool,
    /// Why starting it failed last, in words.
    pub trouble: Option<String>,
}

/// What is known of its box.
#[derive(Clone, Debug, PartialEq)]
pub enum Sight {
    /// Nobody has looked yet.
    Unseen,
    Absent,
    Box(Observed),
}

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// It is where it shall be.
    Nothing,
    /// Ask the cluster what it has.
    Look,
    /// Set room aside in its cluster.
    Admit,
    /// Make the box; what comes back is the next sight.
    Ensure,
    /// Look again after so long, or when the cluster says that something changed.
    Wait(Duration),
    /// End its processes, then look again.
    Stop { grace: Duration },
    /// Store the box's last output, remove the box, and write down what happened.
    Conclude {
        archive: Archive,
        removal: Removal,
        happening: Happening,
    },
    /// Write down what happened.
    Record(Happening),
    /// Nobody needs the box any more.
    Remove,
}

/// Whether the last output is stored before the box goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    /// There is none.
    Skip,
    /// Try until then; after it, go on without.
    Until(DateTime<Utc>),
}

/// Whether the box is removed before its end shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The user waits for the end of the command, not for the clean-up.
    Later,
    /// `terminated` promises that nothing is left.
    First,
}

/// How long an end may be held up by an archive that cannot be written.
pub const ARCHIVE_PATIENCE: Duration = Duration::from_secs(30);

/// The cluster's watch tells sooner; this is for when it does not.
const SHORTEST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A tenth of its age so far, within bounds.
fn wait_for(intent: &Intent, now: DateTime<Utc>) -> Duration {
    let age = (now - intent.created_at).to_std().unwrap_or_default();
    (age / 10).clamp(SHORTEST_WAIT, LONGEST_WAIT)
}

fn patience_from(since: DateTime<Utc>, extra: Duration) -> Archive {
    let patience = TimeDelta::from_std(ARCHIVE_PATIENCE + extra).unwrap_or(TimeDelta::MAX);
    Archive::Until(
        since
            .checked_add_signed(patience)
            .unwrap_or(DateTime::<Utc>::MAX_UTC),
    )
}

/// The next step for an environment.
#[must_use]
pub fn plan(intent: &Intent, sight: &Sight, now: DateTime<Utc>) -> Plan {
    match intent.status {
        Status::Pending => plan_pending(intent, sight, now),
        Status::Running => plan_running(sight),
        Status::Terminating => plan_terminating(intent, sight, now),
        Status::Terminated | Status::Failed if intent.box_removed => Plan::Nothing,
        Status::Terminated | Status::Failed => Plan::Remove,
    }
}

fn plan_pending(intent: &Intent, sight: &Sight, now: DateTime<Utc>) -> Plan {
    let too_late = now >= intent.start_deadline;
    match sight {
        Sight::Unseen if too_late => Plan::Look,
        Sight::Unseen if !intent.admitted => Plan::Admit,
        Sight::Unseen => Plan::Ensure,
        Sight::Absent if too_late => Plan::Record(too_late_because(intent, None)),
        Sight::Absent => Plan::Ensure,
        Sight::Box(observed) => match &observed.phase {
            BoxPhase::Running {
                address,
                started_at,
            } => Plan::Record(Happening::Started {
                address: *address,
                at: *started_at,
            }),
            BoxPhase::Starting { message } if too_late => {
                Plan::Record(too_late_because(intent, Some(message)))
            }
            BoxPhase::Starting { .. } => Plan::Wait(wait_for(intent, now)),
            BoxPhase::Failed { reason, message } => Plan::Record(Happening::NotStarted {
                reason: start_reason(*reason),
                message: message.clone(),
            }),
            BoxPhase::Exited { .. } => conclude_exit(observed),
        },
    }
}

fn too_late_because(intent: &Intent, message: Option<&String>) -> Happening {
    let why = message
        .or(intent.trouble.as_ref())
        .filter(|why| !why.is_empty());
    let with = |words: &str| why.map_or_else(|| words.to_owned(), |why| format!("{words}: {why}"));
    if intent.admitted {
        Happening::NotStarted {
            reason: StatusReason::StartTimeout,
            message: with("it did not start in time"),
        }
    } else {
        Happening::NotStarted {
            reason: StatusReason::Unschedulable,
            message: with("no room became free in time"),
        }
    }
}

fn plan_running(sight: &Sight) -> Plan {
    match sight {
        Sight::Unseen => Plan::Look,
        Sight::Absent => Plan::Record(Happening::Vanished),
        Sight::Box(observed) => match &observed.phase {
            BoxPhase::Running { .. } => Plan::Nothing,
            BoxPhase::Exited { .. } => conclude_exit(observed),
            // Made anew by something that is not us: what ran is lost.
            BoxPhase::Starting { .. } | BoxPhase::Failed { .. } => {
                Plan::Record(Happening::Vanished)
            }
        },
    }
}

fn conclude_exit(observed: &Observed) -> Plan {
    let BoxPhase::Exited {
        exit_code,
        reason,
        message,
        finished_at,
    } = &observed.phase
    else {
        return Plan::Look;
    };
    Plan::Conclude {
        archive: patience_from(*finished_at, Duration::ZERO),
        removal: Removal::Later,
        happening: Happening::Exited {
            exit_code: *exit_code,
            reason: *reason,
            message: message.clone(),
            started_at: observed.created_at,
            at: *finished_at,
        },
    }
}

fn plan_terminating(intent: &Intent, sight: &Sight, now: DateTime<Utc>) -> Plan {
    let conclude = |archive, exit_code| Plan::Conclude {
        archive,
        removal: Removal::First,
        happening: Happening::Removed { exit_code },
    };
    match sight {
        Sight::Unseen => Plan::Look,
        Sight::Absent => Plan::Record(Happening::Removed { exit_code: None }),
        Sight::Box(observed) => match &observed.phase {
            BoxPhase::Running { .. } => Plan::Stop {
                grace: intent.grace,
            },
            BoxPhase::Exited { exit_code, .. } => {
                let since = intent.terminating_at.unwrap_or(now);
                conclude(patience_from(since, intent.grace), Some(*exit_code))
            }
            BoxPhase::Starting { .. } | BoxPhase::Failed { .. } => conclude(Archive::Skip, None),
        },
    }
}

/// Images that a registry did not give, though it may: so long they are asked for again.
const PULL_PATIENCE: TimeDelta = TimeDelta::seconds(20);

/// What follows from a cluster's refusal to make the box, or to say anything about it.
#[must_use]
pub fn after_refusal(intent: &Intent, error: &RuntimeError, now: DateTime<Utc>) -> Plan {
    if intent.status != Status::Pending {
        return Plan::Wait(Duration::from_secs(1));
    }
    let message = error.to_string();
    if now >= intent.start_deadline {
        return Plan::Record(too_late_because(intent, Some(&message)));
    }
    let is_pull = matches!(
        error,
        RuntimeError::Cluster {
            operation: "image pull",
            ..
        }
    );
    if is_pull && now - intent.created_at >= PULL_PATIENCE {
        return Plan::Record(Happening::NotStarted {
            reason: StatusReason::ImagePull,
            message,
        });
    }
    Plan::Wait(wait_for(intent, now))
}
