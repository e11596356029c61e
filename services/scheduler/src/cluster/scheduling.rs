//! Whether a cluster takes new environments. Pure.
//!
//! An operator cordons a cluster, or drains it: then the environments that are left at a deadline are
//! ended. The state is in Postgres; each replica reads it every second.

use std::collections::BTreeMap;

use agentbox_contracts::cluster::SchedulingState;
use agentbox_contracts::error::{Error, ErrorCode};
use chrono::{DateTime, Utc};

use crate::cluster::placement::unmatched_selector;

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

/// The error when an operator has cordoned every cluster that is reachable.
#[must_use]
pub fn every_cluster_cordoned() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "every cluster that is reachable is cordoned by an operator and takes no new environments; \
         try again later",
    )
}

/// `refusal` of the other clusters, or `Unavailable` when one of the `cordoned` clusters (name and
/// labels) might accept the request.
#[must_use]
pub fn retryable_if_cordoned<'a>(
    refusal: Error,
    selector: &BTreeMap<String, String>,
    cordoned: impl IntoIterator<Item = (&'a str, &'a BTreeMap<String, String>)>,
) -> Error {
    let mut possible = cordoned
        .into_iter()
        .filter(|(_, labels)| unmatched_selector(selector, labels).is_some());
    match possible.next() {
        Some((name, _)) if refusal.code == ErrorCode::Validation => Error::new(
            ErrorCode::Unavailable,
            format!(
                "cluster `{name}` may run it but is cordoned by an operator; try again later. Other \
                 clusters: {}",
                refusal.message
            ),
        ),
        _ => refusal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_that_a_cordoned_cluster_might_accept_is_retryable() {
        let region = |name: &str| BTreeMap::from([("region".to_owned(), name.to_owned())]);
        let (eu, us) = (region("eu"), region("us"));
        let refused = || Error::field("node_selector", "no cluster has `region=us`");
        let error = retryable_if_cordoned(refused(), &us, [("a", &eu), ("b", &us)]);
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(error.message.contains("`b`"), "{error}");
        let final_refusal = retryable_if_cordoned(refused(), &us, [("a", &eu)]);
        assert_eq!(final_refusal, refused());
        assert_eq!(every_cluster_cordoned().code, ErrorCode::Unavailable);
    }

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
