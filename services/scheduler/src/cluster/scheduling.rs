//! Whether a cluster takes new environments. Pure.
//!
//! An operator cordons a cluster, or drains it: then the environments that are left at a deadline are
//! ended. The state is in Postgres; each replica reads it every second.

use agentbox_contracts::cluster::SchedulingState;
use chrono::{DateTime, Utc};

/// What an operator has decided about a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduling {
    /// It takes new environments.
    #[default]
    Active,
    /// It takes no new environments.
    Cordoned,
    /// It takes no new environments. Those that are left at the deadline are ended.
    Draining { deadline: DateTime<Utc> },
}

impl Scheduling {
    /// Whether the cluster takes new environments.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Active)
    }

    /// When a drain ends the environments that are left.
    #[must_use]
    pub const fn drain_deadline(self) -> Option<DateTime<Utc>> {
        match self {
            Self::Active | Self::Cordoned => None,
            Self::Draining { deadline } => Some(deadline),
        }
    }

    /// The state of a cluster that has `environments` which have not ended.
    #[must_use]
    pub const fn state(self, environments: u64) -> SchedulingState {
        match self {
            Self::Active => SchedulingState::Active,
            Self::Cordoned => SchedulingState::Cordoned,
            Self::Draining { .. } if environments == 0 => SchedulingState::Drained,
            Self::Draining { .. } => SchedulingState::Draining,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_cluster_is_drained_when_it_has_no_environment() {
        let deadline = DateTime::<Utc>::UNIX_EPOCH;
        for (scheduling, environments, expected) in [
            (Scheduling::Active, 0, SchedulingState::Active),
            (Scheduling::Cordoned, 0, SchedulingState::Cordoned),
            (
                Scheduling::Draining { deadline },
                1,
                SchedulingState::Draining,
            ),
            (
                Scheduling::Draining { deadline },
                0,
                SchedulingState::Drained,
            ),
        ] {
            assert_eq!(scheduling.state(environments), expected, "{scheduling:?}");
        }
    }

    #[test]
    fn only_active_cluster_takes_environments() {
        let deadline = DateTime::<Utc>::UNIX_EPOCH;
        assert!(Scheduling::default().is_active());
        assert!(!Scheduling::Cordoned.is_active());
        let draining = Scheduling::Draining { deadline };
        assert!(!draining.is_active());
        assert_eq!(draining.drain_deadline(), Some(deadline));
    }
}
