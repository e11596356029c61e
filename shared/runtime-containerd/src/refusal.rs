//! Decides whether a container that containerd refuses can never start. Pure.
//!
//! * I1. A message for the user contains no text of containerd, which may name paths of the server.

use agentbox_runtime::{FailureReason, start_failure};
use chrono::{DateTime, TimeDelta, Utc};

use crate::box_state::{BoxState, Failure};

/// How long containerd may refuse to create or to start the container for an unknown reason. Long
/// enough for a short failure of the machine.
const REFUSED_LIMIT: TimeDelta = TimeDelta::seconds(60);

/// Whether containerd has no runtime for the sandbox's runtime class.
pub fn is_missing_runtime(message: &str) -> bool {
    let lower = message.to_lowercase();
    ["no runtime for", "unknown runtime", "runtime handler"]
        .iter()
        .any(|text| lower.contains(text))
}

/// Records that containerd refused the container with this message. The box fails if no later
/// attempt can succeed, or if the refusals last.
pub fn record(state: &mut BoxState, image: &str, message: &str, now: DateTime<Utc>) {
    let since = *state.refused_at.get_or_insert(now);
    if start_failure::permanent_cause(message).is_some() || now - since >= REFUSED_LIMIT {
        state.failure = Some(Failure {
            reason: FailureReason::ImageInvalid,
            message: start_failure::cannot_run(image, start_failure::describe(message)),
        });
    }
}

/// Records that containerd accepted the container, so that earlier refusals do not count any more.
/// Returns whether there were any.
pub fn clear(state: &mut BoxState) -> bool {
    state.refused_at.take().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    /// The seconds after the first refusal at which the box fails, with the failure's message.
    fn failure(message: &str) -> (i64, String) {
        let mut state = BoxState::new(1, at(0));
        for seconds in 0..=120 {
            record(&mut state, "x", message, at(seconds));
            if let Some(failure) = state.failure {
                assert_eq!(failure.reason, FailureReason::ImageInvalid);
                return (seconds, failure.message);
            }
        }
        panic!("it never fails: {message}")
    }

    #[test]
    fn refused_container_fails_the_box_without_a_path_of_the_server() {
        for (message, seconds, cause) in [
            (
                "open /tmp/containerd-mount1/etc/passwd: no such file or directory",
                0,
                "its user is not in its passwd file",
            ),
            (
                "failed to generate container spec: no groups found",
                0,
                "its group is not in its group file",
            ),
            (
                "failed to create shim task: mkdir /run/containerd/x: anything",
                60,
                "the container runtime refuses to start it",
            ),
        ] {
            let expected = format!("the image \"x\" cannot run: {cause}");
            assert_eq!(failure(message), (seconds, expected));
        }
    }

    #[test]
    fn refusal_after_an_accepted_container_is_a_first_one() {
        let mut state = BoxState::new(1, at(0));
        assert!(!clear(&mut state));
        record(&mut state, "x", "anything", at(0));
        assert!(clear(&mut state));
        record(&mut state, "x", "anything", at(61));
        assert_eq!(state.failure, None);
        record(&mut state, "x", "anything", at(121));
        assert!(state.failure.is_some());
    }

    #[test]
    fn only_a_missing_runtime_is_an_error_of_the_runtime_class() {
        for (message, is_missing) in [
            ("no runtime for \"gvisor\" is configured", true),
            ("failed to reserve sandbox name", false),
            ("context deadline exceeded", false),
            (
                "failed to setup network for sandbox: no IP addresses available in range set",
                false,
            ),
        ] {
            assert_eq!(is_missing_runtime(message), is_missing, "{message}");
        }
    }
}
