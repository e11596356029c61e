//! The image of a box: there, or pulled, or impossible.

use std::time::Duration;

use agentbox_runtime::SecurityContext;
use k8s_cri::v1::Image;

use crate::cri::CriError;

/// What a failed pull means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullFailure {
    /// Asking again will not help: no such image, no right, no such registry.
    Final(String),
    /// The registry is busy or broke off.
    Transient(String),
}

/// What a registry, or the way to it, says when asking again may help.
const TRANSIENT: [&str; 11] = [
    "429",
    "too many requests",
    "toomanyrequests",
    "500 internal server error",
    "502 bad gateway",
    "503 service unavailable",
    "504 gateway time",
    "i/o timeout",
    "tls handshake timeout",
    "connection reset",
    "unexpected eof",
];

/// Decides by what containerd said; `deadline` is the pull's own.
pub fn classify_pull(image: &str, error: &CriError, deadline: Duration) -> PullFailure {
    let image = image
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect::<String>();
    match error {
        // containerd keeps what has come, so the next attempt goes on from there.
        CriError::Deadline { .. } => PullFailure::Transient(format!(
            "the image \"{image}\" did not come within {} s",
            deadline.as_secs()
        )),
        CriError::Unavailable { message, .. } => PullFailure::Transient(message.clone()),
        CriError::Refused { message, .. } => {
            let said = message.to_lowercase();
            let why = format!("cannot pull the image \"{image}\": {}", cause(message));
            if TRANSIENT.iter().any(|part| said.contains(part)) {
                PullFailure::Transient(why)
            } else {
                PullFailure::Final(why)
            }
        }
    }
}

/// The end of containerd's chain of wrapped errors says most.
fn cause(message: &str) -> String {
    let said = message.trim();
    let end = said.rsplit_once("desc = ").map_or(said, |(_, end)| end);
    end.chars().filter(|c| !c.is_control()).take(400).collect()
}

/// Why the image's own user does not do for the spec; as the kubelet decides it.
pub fn user_problem(image: &Image, asked: Option<&SecurityContext>) -> Option<String> {
    let asked = asked?;
    if asked.run_as_non_root != Some(true) || asked.run_as_user.is_some() {
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
    fn only_what_may_pass_is_tried_again() {
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
        }
    }

    #[test]
    fn an_image_that_may_run_as_root_does_not_do_for_non_root() {
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
        for (image, asked, problem) in [
            (image(Some(0), ""), Some(&non_root), true),
            (image(None, ""), Some(&non_root), true),
            (image(None, "app"), Some(&non_root), true),
            (image(Some(1000), ""), Some(&non_root), false),
            (image(Some(0), ""), Some(&with_user), false),
            (image(Some(0), ""), None, false),
        ] {
            assert_eq!(
                user_problem(&image, asked).is_some(),
                problem,
                "{image:?} {asked:?}"
            );
        }
    }
}
