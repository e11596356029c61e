//! Classifies failed image pulls, and checks an image's user. Pure.

use std::time::Duration;

use agentbox_runtime::SecurityContext;
use agentbox_runtime::image_pull::{is_transient_error, printable_image, public_cause};
use k8s_cri::v1::Image;

use crate::cri::CriError;

/// The classes of a failed pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullFailure {
    /// No later attempt can succeed: no such image, no permission, no such registry.
    Final(String),
    /// The registry is busy, or the connection broke.
    Transient(String),
}

/// Classifies containerd's error; `deadline` is the deadline of the pull.
pub fn classify_pull(image: &str, error: &CriError, deadline: Duration) -> PullFailure {
    let image = printable_image(image);
    match error {
        // containerd keeps the layers that arrived, and the next attempt continues.
        CriError::Deadline { .. } => PullFailure::Transient(format!(
            "the image \"{image}\" was not pulled within {} s",
            deadline.as_secs()
        )),
        CriError::Unavailable { message, .. } => PullFailure::Transient(message.clone()),
        CriError::Refused { message, .. } => {
            let cause = public_cause(message);
            let text = format!("cannot pull the image \"{image}\": {cause}");
            if is_transient_error(message) {
                PullFailure::Transient(text)
            } else {
                PullFailure::Final(text)
            }
        }
    }
}

/// The reason that the image's own user does not satisfy the spec, decided as the kubelet does.
pub fn user_problem(image: &Image, requested: Option<&SecurityContext>) -> Option<String> {
    let requested = requested?;
    if requested.run_as_non_root != Some(true) || requested.run_as_user.is_some() {
        return None;
    }
    match (&image.uid, image.username.as_str()) {
        (Some(uid), _) if uid.value == 0 => {
            Some("run_as_non_root is set and the image's user is root: give run_as_user".to_owned())
        }
        (None, "") => {
            Some("run_as_non_root is set and the image's user is root: give run_as_user".to_owned())
        }
        (None, name) => Some(format!(
            "run_as_non_root is set and the image's user \"{name}\" is not numeric, so it may be \
             root: give run_as_user"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::Int64Value;
    use tonic::Code;

    use super::*;

    #[test]
    fn only_transient_pull_errors_are_retried() {
        let refused = |message: &str| CriError::Refused {
            operation: "PullImage",
            code: Code::Unknown,
            message: message.to_owned(),
        };
        for (message, transient) in [
            (
                "rpc error: code = NotFound desc = failed to resolve reference \"x\": x: not found",
                false,
            ),
            (
                "pull access denied, repository does not exist or may require authorization",
                false,
            ),
            ("dial tcp: lookup registry.invalid: no such host", false),
            ("dial tcp 127.0.0.1:1: connect: connection refused", false),
            ("invalid reference format", false),
            (
                "unexpected status code [manifests x]: 429 Too Many Requests",
                true,
            ),
            ("unexpected status: 503 Service Unavailable", true),
            ("read tcp: connection reset by peer", true),
        ] {
            let got = classify_pull("nope:1", &refused(message), Duration::from_secs(9));
            assert_eq!(
                matches!(got, PullFailure::Transient(_)),
                transient,
                "{message}"
            );
            let (PullFailure::Final(text) | PullFailure::Transient(text)) = got;
            assert!(text.contains("nope:1"), "{text}");
            for cause in ["dial", "127.0.0.1", "lookup", "manifests"] {
                assert!(!text.contains(cause), "{text}");
            }
        }
    }

    #[test]
    fn image_that_may_run_as_root_is_refused_for_non_root() {
        let image = |uid: Option<i64>, name: &str| Image {
            uid: uid.map(|value| Int64Value { value }),
            username: name.to_owned(),
            ..Default::default()
        };
        let non_root = SecurityContext {
            run_as_non_root: Some(true),
            ..Default::default()
        };
        let with_user = SecurityContext {
            run_as_user: Some(1000),
            ..non_root.clone()
        };
        for (image, requested, problem) in [
            (image(Some(0), ""), Some(&non_root), true),
            (image(None, ""), Some(&non_root), true),
            (image(None, "app"), Some(&non_root), true),
            (image(Some(1000), ""), Some(&non_root), false),
            (image(Some(0), ""), Some(&with_user), false),
            (image(Some(0), ""), None, false),
        ] {
            assert_eq!(
                user_problem(&image, requested).is_some(),
                problem,
                "{image:?} {requested:?}"
            );
        }
    }
}
