//! Why the kubelet has not started a container, and for how long that may go on. Pure.
//!
//! * I1. The kubelet retries almost everything. A reason that it retries fails the box only
//!   after it has lasted as long as [`Retry`] allows, counted from when it was first
//!   recorded; a first failure alone never does.
//! * I2. A message for the user names the user's image, and never an image or a registry of
//!   the deployment.

use std::time::Duration;

use agentbox_runtime::FailureReason;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::box_state::Failure;
use crate::objects::MAIN;

/// How long a refused pull may last. The kubelet repeats a pull 10 to 17 seconds after its
/// first failure.
const REFUSED: Duration = Duration::from_secs(20);
/// How long a pull may lack credentials where the Pod has pull secrets. The kubelet may not have
/// seen a new secret at its first attempt; the second then downloads the image, and the status
/// still shows the refusal meanwhile.
const UNAUTHORIZED: Duration = Duration::from_secs(60);

/// Answers of a registry, or of the network, after which a later attempt may succeed.
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

/// Answers of a registry that may mean missing credentials.
const NO_CREDENTIALS: [&str; 6] = [
    "no basic auth credentials",
    "unauthorized",
    "authorization",
    "authentication required",
    "access denied",
    "403 forbidden",
];

/// Errors that follow from the image and the spec alone.
const OF_THE_IMAGE: [&str; 5] = [
    "runasnonroot",
    "run as root",
    "non-numeric user",
    "unable to find user",
    "no users found",
];

/// Errors that usually follow from the image, but also from a volume that is not mounted yet.
const PROBABLY_OF_THE_IMAGE: [&str; 3] = [
    "no such file or directory",
    "executable file not found",
    "permission denied",
];

/// The step at which a container does not get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Pull,
    Create,
}

impl Step {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Create => "create",
        }
    }
}

/// How long a failure may last before it is the box's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nothing that can change causes it.
    Never,
    /// The kubelet must have retried at least once.
    For(Duration),
    /// Until the configured deadline.
    UntilDeadline,
}

/// A container that waits after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// `container: step`. A failure of another container or step is another failure.
    pub key: String,
    pub retry: Retry,
    /// The box's failure, if this lasts.
    pub failure: Failure,
    /// The image belongs to the deployment, not to the user.
    pub is_ours: bool,
    /// The kubelet's reason and message, for the log only.
    pub detail: String,
}

/// What blocks a container that waits for `reason`; `None` when nothing has failed.
pub fn blocked(pod: &Pod, container: &str, reason: &str, message: &str) -> Option<Blocked> {
    let step = match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ErrImageNeverPull"
        | "InvalidImageName"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => Step::Pull,
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "StartError"
        | "ContainerCannotRun" => Step::Create,
        _ => return None,
    };
    let is_ours = is_ours(pod, container, message);
    let has_secrets = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.image_pull_secrets.as_ref())
        .is_some_and(|secrets| !secrets.is_empty());
    let lower = message.to_lowercase();
    let retry = match step {
        // The user cannot mend it: wait for the operator, or for the kubelet's next attempt.
        _ if is_ours => Retry::UntilDeadline,
        Step::Pull => retry_pull(reason, &lower, has_secrets),
        Step::Create => retry_create(&lower),
    };
    let image: String = image_of(pod, container)
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    let failure = match (step, is_ours) {
        (Step::Pull, false) => Failure {
            reason: FailureReason::ImagePull,
            message: format!("cannot pull the image \"{image}\": {}", cause(message)),
        },
        (Step::Create, false) => Failure {
            reason: FailureReason::ImageInvalid,
            message: format!("the image \"{image}\" cannot run: {}", cause(message)),
        },
        (Step::Pull, true) => Failure {
            reason: FailureReason::ImagePull,
            message: "cannot pull an image that this deployment adds to every environment; \
                      its operator must make it available"
                .to_owned(),
        },
        (Step::Create, true) => Failure {
            reason: FailureReason::ImageInvalid,
            message: "cannot start a container that this deployment adds to every environment"
                .to_owned(),
        },
    };
    Some(Blocked {
        key: format!("{container}: {}", step.as_str()),
        retry,
        failure,
        is_ours,
        detail: format!("{reason}: {message}"),
    })
}

impl Blocked {
    /// The box's failure, once this has lasted for too long.
    pub fn failed(&self, lasted: Option<Duration>, deadline: Duration) -> Option<Failure> {
        let limit = match self.retry {
            Retry::Never => return Some(self.failure.clone()),
            Retry::For(limit) => limit.min(deadline),
            Retry::UntilDeadline => deadline,
        };
        lasted
            .is_some_and(|lasted| lasted >= limit)
            .then(|| self.failure.clone())
    }

    /// What a user may read while the kubelet retries.
    pub fn progress(&self) -> String {
        format!("{}; trying again", self.failure.message)
    }
}

fn retry_pull(reason: &str, message: &str, has_secrets: bool) -> Retry {
    let contains = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
    match reason {
        "InvalidImageName" | "ErrImageNeverPull" => Retry::Never,
        "ImageInspectError" | "RegistryUnavailable" => Retry::UntilDeadline,
        _ if contains(&TRANSIENT) => Retry::UntilDeadline,
        // Older kubelets do not repeat the cause here.
        "ImagePullBackOff" if !message.contains("errimagepull") => Retry::UntilDeadline,
        _ if has_secrets && contains(&NO_CREDENTIALS) => Retry::For(UNAUTHORIZED),
        _ => Retry::For(REFUSED),
    }
}

fn retry_create(message: &str) -> Retry {
    let contains = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
    if contains(&OF_THE_IMAGE) {
        Retry::Never
    } else if contains(&PROBABLY_OF_THE_IMAGE) {
        Retry::For(REFUSED)
    } else {
        Retry::UntilDeadline
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        inits.iter().chain(&spec.containers)
    })
}

fn image_of<'a>(pod: &'a Pod, container: &str) -> &'a str {
    containers(pod)
        .find(|one| one.name == container)
        .and_then(|one| one.image.as_deref())
        .unwrap_or_default()
}

/// Whether the failing image is the deployment's. The kubelet reports an image volume as a
/// failure of the container that mounts it, and names the image in its message.
fn is_ours(pod: &Pod, container: &str, message: &str) -> bool {
    if container != MAIN {
        return true;
    }
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| volume.image.as_ref()?.reference.as_deref())
        .any(|ours| !ours.is_empty() && ours != image_of(pod, MAIN) && message.contains(ours))
}

/// The innermost of a chain of wrapped errors.
fn cause(message: &str) -> String {
    let text = message.trim();
    let end = text.rsplit_once("desc = ").map_or(text, |(_, end)| end);
    end.chars().filter(|c| !c.is_control()).take(400).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(120);

    fn pod(has_secrets: bool) -> Pod {
        let secrets = if has_secrets {
            json!([{ "name": "registry" }])
        } else {
            json!([])
        };
        serde_json::from_value(json!({ "spec": {
            "imagePullSecrets": secrets,
            "initContainers": [{ "name": "boxd", "image": "registry.internal:5000/team/boxd:1" }],
            "containers": [{ "name": "main", "image": "x" }],
            "volumes": [{ "name": "programs",
                "image": { "reference": "registry.internal:5000/team/boxd:1" } }],
        }}))
        .unwrap()
    }

    fn failed(
        pod: &Pod,
        reason: &str,
        message: &str,
        lasted: Option<u64>,
    ) -> Option<FailureReason> {
        let blocked = blocked(pod, MAIN, reason, message)?;
        let lasted = lasted.map(Duration::from_secs);
        blocked
            .failed(lasted, DEADLINE)
            .map(|failure| failure.reason)
    }

    /// Texts of kubelets 1.33 to 1.36 with containerd 2.
    const NOT_FOUND: &str = "failed to pull and unpack image \"docker.io/library/x:latest\": \
        failed to resolve reference \"docker.io/library/x:latest\": docker.io/library/x:latest: not found";
    const NO_BASIC_AUTH: &str = "failed to pull and unpack image \"10.0.0.5:5000/x:1\": failed to \
        resolve reference \"10.0.0.5:5000/x:1\": pull access denied, repository does not exist or \
        may require authorization: authorization failed: no basic auth credentials";
    const REFUSED_CONNECTION: &str = "failed to do request: Head \"http://127.0.0.1:1/v2/x/manifests/1\": \
        dial tcp 127.0.0.1:1: connect: connection refused";
    const BUSY: &str = "failed to copy: httpReadSeeker: failed open: unexpected status from GET \
        request: 503 Service Unavailable";
    const ROOT: &str = "container has runAsNonRoot and image will run as root (pod: \"main\")";

    #[test]
    fn kubelet_failure_fails_the_box_only_after_it_lasted() {
        let pull = Some(FailureReason::ImagePull);
        let invalid = Some(FailureReason::ImageInvalid);
        let back_off = format!("Back-off pulling image \"x\": ErrImagePull: {NOT_FOUND}");
        let secret_back_off =
            format!("Back-off pulling image \"x\": ErrImagePull: {NO_BASIC_AUTH}");
        let mount = "failed to generate container spec: failed to stat \"/var/lib/kubelet/x\": \
            no such file or directory";
        // reason, message, with pull secrets, seconds until it fails the box (`None`: never).
        type Row<'a> = (&'a str, &'a str, bool, Option<u64>, Option<FailureReason>);
        let table: [Row; 19] = [
            ("ErrImagePull", NOT_FOUND, true, Some(20), pull),
            ("ImagePullBackOff", &back_off, true, Some(20), pull),
            ("ErrImagePull", REFUSED_CONNECTION, true, Some(20), pull),
            ("ErrImagePull", NO_BASIC_AUTH, true, Some(60), pull),
            ("ImagePullBackOff", &secret_back_off, true, Some(60), pull),
            ("ErrImagePull", NO_BASIC_AUTH, false, Some(20), pull),
            ("ErrImagePull", BUSY, true, Some(120), pull),
            ("ErrImagePull", "pull QPS exceeded", true, Some(120), pull),
            (
                "ImagePullBackOff",
                "Back-off pulling image \"x\"",
                true,
                Some(120),
                pull,
            ),
            ("RegistryUnavailable", "down", true, Some(120), pull),
            ("SignatureValidationFailed", "no key", true, Some(20), pull),
            (
                "InvalidImageName",
                "couldn't parse image name \"X\"",
                true,
                Some(0),
                pull,
            ),
            ("ErrImageNeverPull", "not present", true, Some(0), pull),
            ("CreateContainerConfigError", ROOT, true, Some(0), invalid),
            (
                "CreateContainerError",
                "unable to find user app: no matching entries",
                true,
                Some(0),
                invalid,
            ),
            ("CreateContainerError", mount, true, Some(20), invalid),
            (
                "CreateContainerConfigError",
                "secret \"boxd\" not found",
                true,
                Some(120),
                invalid,
            ),
            ("ContainerCreating", "", true, None, None),
            ("PodInitializing", "", true, None, None),
        ];
        for (reason, message, has_secrets, fails_after, expected) in table {
            let pod = pod(has_secrets);
            let what = format!("{reason} {message}");
            let first = failed(&pod, reason, message, None);
            let at_once = expected.filter(|_| fails_after == Some(0));
            assert_eq!(first, at_once, "at its first failure: {what}");
            let Some(limit) = fails_after else { continue };
            if let Some(before) = limit.checked_sub(1) {
                assert_eq!(
                    failed(&pod, reason, message, Some(before)),
                    None,
                    "before: {what}"
                );
            }
            assert_eq!(
                failed(&pod, reason, message, Some(limit)),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn short_deadline_bounds_every_retry() {
        let blocked = blocked(&pod(true), MAIN, "ErrImagePull", NO_BASIC_AUTH).unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(blocked.failed(Some(Duration::ZERO), second), None);
        assert!(blocked.failed(Some(second), second).is_some());
    }

    #[test]
    fn deployment_image_failure_waits_for_the_deadline_and_is_not_named() {
        let message =
            NO_BASIC_AUTH.replace("10.0.0.5:5000/x:1", "registry.internal:5000/team/boxd:1");
        for container in ["boxd", MAIN] {
            for reason in [
                "ErrImagePull",
                "ImagePullBackOff",
                "CreateContainerConfigError",
            ] {
                let blocked = blocked(&pod(true), container, reason, &message).unwrap();
                assert!(blocked.is_ours, "{container} {reason}");
                assert_eq!(blocked.retry, Retry::UntilDeadline);
                for text in [&blocked.failure.message, &blocked.progress()] {
                    assert!(
                        !text.contains("registry.internal") && !text.contains("boxd"),
                        "{text}"
                    );
                }
                assert!(blocked.detail.contains("registry.internal"));
            }
        }
    }

    #[test]
    fn users_own_image_is_named() {
        let blocked = blocked(&pod(true), MAIN, "ErrImagePull", NOT_FOUND).unwrap();
        assert!(!blocked.is_ours);
        assert!(blocked.failure.message.contains("\"x\""), "{blocked:?}");
    }
}
