//! Why the kubelet does not start a container: its words, as a failure or as patience.
//! Pure.

use std::time::Duration;

use agentbox_runtime::FailureReason;

use crate::facts::Failure;

/// What a registry, or the way to it, says when asking again may help.
const TRANSIENT: [&str; 12] = [
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
    "pull qps exceeded",
];

/// A container that waits with this reason: will it ever start? `None`: it may.
pub fn failure(
    image: &str,
    reason: &str,
    message: &str,
    waited: Duration,
    patience: Duration,
) -> Option<Failure> {
    let image: String = image
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ErrImageNeverPull"
        | "InvalidImageName"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => {
            let said = message.to_lowercase();
            let may_pass = TRANSIENT.iter().any(|part| said.contains(part));
            // A back-off without the cause says nothing about it.
            let is_unexplained = reason == "ImagePullBackOff" && !said.contains("errimagepull");
            if (may_pass || is_unexplained) && waited < patience {
                return None;
            }
            Some(Failure {
                reason: FailureReason::ImagePull,
                message: format!("cannot pull the image \"{image}\": {}", cause(message)),
            })
        }
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "StartError"
        | "ContainerCannotRun" => {
            // Both also come when something of the node is not there yet.
            let is_the_images = [
                "runasnonroot",
                "run as root",
                "non-numeric user",
                "no such file or directory",
                "executable file not found",
                "unable to find user",
                "no users found",
                "permission denied",
            ]
            .iter()
            .any(|part| message.to_lowercase().contains(part));
            (is_the_images || waited >= patience).then(|| Failure {
                reason: FailureReason::ImageInvalid,
                message: format!("the image \"{image}\" cannot run: {}", cause(message)),
            })
        }
        _ => None,
    }
}

/// The end of a chain of wrapped errors says most.
fn cause(message: &str) -> String {
    let said = message.trim();
    let end = said.rsplit_once("desc = ").map_or(said, |(_, end)| end);
    end.chars().filter(|c| !c.is_control()).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_waited_for_and_no_longer_than_its_patience() {
        let not_found =
            "rpc error: code = NotFound desc = failed to resolve reference \"x\": not found";
        let busy = "failed to copy: 503 Service Unavailable";
        let root = "container has runAsNonRoot and image will run as root (pod: \"main\")";
        let table = [
            ("ErrImagePull", not_found, 1, Some(FailureReason::ImagePull)),
            ("ErrImagePull", busy, 1, None),
            ("ErrImagePull", busy, 121, Some(FailureReason::ImagePull)),
            ("ImagePullBackOff", "Back-off pulling image \"x\"", 1, None),
            (
                "ImagePullBackOff",
                "Back-off pulling image \"x\": ErrImagePull: x: not found",
                1,
                Some(FailureReason::ImagePull),
            ),
            (
                "InvalidImageName",
                "couldn't parse",
                1,
                Some(FailureReason::ImagePull),
            ),
            (
                "CreateContainerConfigError",
                root,
                1,
                Some(FailureReason::ImageInvalid),
            ),
            (
                "CreateContainerConfigError",
                "secret \"boxd\" not found",
                1,
                None,
            ),
            ("ContainerCreating", "", 500, None),
            ("PodInitializing", "", 500, None),
        ];
        for (reason, message, waited, expected) in table {
            let waited = Duration::from_secs(waited);
            let got = failure("x", reason, message, waited, Duration::from_secs(120));
            assert_eq!(got.map(|f| f.reason), expected, "{reason} {message}");
        }
    }
}
