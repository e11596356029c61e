//! Classifies the failures after which the kubelet has not started a container, and decides when
//! one fails the box. Pure.
//!
//! * I1. The kubelet retries almost everything. A reason that it retries fails the box only
//!   after it has lasted as long as [`Retry`] allows, counted from its first record. A first
//!   failure alone never fails the box.
//! * I2. A message for the user names the user's image, and never an image or a registry of
//!   the deployment, or a path of a node.

mod retry;

use std::time::Duration;

use agentbox_runtime::image_pull::{printable_image, public_cause};
use agentbox_runtime::{FailureReason, start_failure};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::box_state::Failure;
use crate::labels::OWNER_LOGIN;
use crate::objects::{MAIN, PULL_SECRET};
pub use retry::Retry;
use retry::{retry_create, retry_pull};

/// The step of a container's start that failed.
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

/// A container that waits after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// `container: step`. The time of a failure is counted for each container and step.
    pub key: String,
    pub retry: Retry,
    /// The failure of the box, if this lasts longer than `retry` allows.
    pub failure: Failure,
    /// Whether the image belongs to the deployment, and not to the user.
    pub is_deployment_image: bool,
    /// The kubelet's reason and message, for the log only.
    pub detail: String,
}

/// Classifies the `reason` that a container waits for; `None` when nothing has failed.
pub fn classify(pod: &Pod, container: &str, reason: &str, message: &str) -> Option<Blocked> {
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
    let is_deployment_image = is_deployment_image(pod, container, message);
    let has_secrets = may_have_login(pod);
    let lower = message.to_lowercase();
    let retry = match step {
        // The user cannot repair it: this waits for the operator, or for the kubelet's next
        // attempt.
        _ if is_deployment_image => Retry::UntilDeadline,
        Step::Pull => retry_pull(reason, &lower, has_secrets),
        Step::Create => retry_create(message),
    };
    let image = image_of(pod, container);
    let failure = match (step, is_deployment_image) {
        (Step::Pull, false) => Failure {
            reason: FailureReason::ImagePull,
            message: format!(
                "cannot pull the image \"{}\": {}",
                printable_image(image),
                public_cause(message)
            ),
        },
        (Step::Create, false) => Failure {
            reason: FailureReason::ImageInvalid,
            message: start_failure::cannot_run(image, start_failure::describe(message)),
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
        is_deployment_image,
        detail: format!("{reason}: {message}"),
    })
}

impl Blocked {
    /// The failure of the box, when this has lasted longer than its limit.
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

    /// The message for the user while the kubelet retries.
    pub fn progress(&self) -> String {
        format!("{}; trying again", self.failure.message)
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        inits.iter().chain(&spec.containers)
    })
}

/// The image of a container; empty if there is no such container.
pub fn image_of<'a>(pod: &'a Pod, container: &str) -> &'a str {
    containers(pod)
        .find(|candidate| candidate.name == container)
        .and_then(|found| found.image.as_deref())
        .unwrap_or_default()
}

/// Whether the Pod may have a login for the user's image, which the kubelet may not have seen yet.
fn may_have_login(pod: &Pod) -> bool {
    let mut secrets = pod
        .spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let has_shared = secrets.any(|secret| secret.name != PULL_SECRET);
    let annotations = pod.metadata.annotations.as_ref();
    has_shared || annotations.is_some_and(|all| all.contains_key(OWNER_LOGIN))
}

/// Whether the failing image is the deployment's. The kubelet reports an image volume as a
/// failure of the container that mounts it, and names the image in its message.
fn is_deployment_image(pod: &Pod, container: &str, message: &str) -> bool {
    if container != MAIN {
        return true;
    }
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| volume.image.as_ref()?.reference.as_deref())
        .any(|image| !image.is_empty() && image != image_of(pod, MAIN) && message.contains(image))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::LocalObjectReference;
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
        let blocked = classify(pod, MAIN, reason, message)?;
        let lasted = lasted.map(Duration::from_secs);
        blocked
            .failed(lasted, DEADLINE)
            .map(|failure| failure.reason)
    }

    #[test]
    fn login_for_boxds_image_alone_is_none_for_the_users_image() {
        let mut pod = pod(true);
        assert!(may_have_login(&pod));
        let secret = LocalObjectReference {
            name: PULL_SECRET.to_owned(),
        };
        pod.spec.as_mut().unwrap().image_pull_secrets = Some(vec![secret]);
        assert!(!may_have_login(&pod));
        let annotation = (OWNER_LOGIN.to_owned(), "true".to_owned());
        pod.metadata.annotations = Some([annotation].into());
        assert!(may_have_login(&pod));
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
            let case = format!("{reason} {message}");
            let first = failed(&pod, reason, message, None);
            let at_once = expected.filter(|_| fails_after == Some(0));
            assert_eq!(first, at_once, "at its first failure: {case}");
            let Some(limit) = fails_after else { continue };
            if let Some(before) = limit.checked_sub(1) {
                assert_eq!(
                    failed(&pod, reason, message, Some(before)),
                    None,
                    "before the limit: {case}"
                );
            }
            assert_eq!(
                failed(&pod, reason, message, Some(limit)),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn short_deadline_bounds_every_retry() {
        let blocked = classify(&pod(true), MAIN, "ErrImagePull", NO_BASIC_AUTH).unwrap();
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
                let blocked = classify(&pod(true), container, reason, &message).unwrap();
                assert!(blocked.is_deployment_image, "{container} {reason}");
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
    fn path_of_the_node_is_only_in_the_detail() {
        for (reason, message) in [
            (
                "CreateContainerError",
                "failed to stat \"/var/lib/kubelet/x\": no such file",
            ),
            ("RunContainerError", "mkdir /var/lib/x: not a directory"),
            (
                "ErrImagePull",
                "write /var/lib/containerd/x: input/output error",
            ),
        ] {
            let blocked = classify(&pod(true), MAIN, reason, message).unwrap();
            assert!(!blocked.progress().contains("/var"), "{blocked:?}");
            assert!(blocked.detail.contains("/var"), "{blocked:?}");
        }
    }

    #[test]
    fn failed_pull_of_a_user_image_tells_nothing_of_the_network() {
        let blocked = classify(&pod(true), MAIN, "ErrImagePull", REFUSED_CONNECTION).unwrap();
        for text in [&blocked.failure.message, &blocked.progress()] {
            assert!(
                !text.contains("127.0.0.1") && !text.contains("refused"),
                "{text}"
            );
        }
        assert!(blocked.detail.contains("connection refused"));
    }

    #[test]
    fn user_image_is_named_in_its_failure() {
        let blocked = classify(&pod(true), MAIN, "ErrImagePull", NOT_FOUND).unwrap();
        assert!(!blocked.is_deployment_image);
        assert!(blocked.failure.message.contains("\"x\""), "{blocked:?}");
    }
}
