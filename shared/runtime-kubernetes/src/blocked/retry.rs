//! Decides how long the kubelet may retry a failure before it fails the box. Pure.

use std::time::Duration;

use agentbox_runtime::image_pull::is_transient_error;
use agentbox_runtime::start_failure;

/// Long enough for the kubelet's first retry, which comes 10 to 17 seconds after the failure.
const ONE_RETRY: Duration = Duration::from_secs(20);
/// The limit of a pull without credentials where the Pod has pull secrets. The kubelet may not have
/// seen a new secret at its first attempt. The second attempt then downloads the image, and the
/// status shows the refusal until the download ends.
const MISSING_CREDENTIALS: Duration = Duration::from_secs(60);

/// The kubelet's own limit of concurrent pulls.
const KUBELET_PULL_LIMIT: &str = "pull qps exceeded";

/// Answers of a registry that may mean missing credentials.
const CREDENTIAL_ERRORS: [&str; 6] = [
    "no basic auth credentials",
    "unauthorized",
    "authorization",
    "authentication required",
    "access denied",
    "403 forbidden",
];

/// How long a failure may last before it fails the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No retry can succeed.
    Never,
    /// Long enough for at least one retry of the kubelet.
    For(Duration),
    /// Until the configured deadline.
    UntilDeadline,
}

/// The retry of a failed pull; `message` is in lower case.
pub fn retry_pull(reason: &str, message: &str, has_secrets: bool) -> Retry {
    let contains = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    match reason {
        "InvalidImageName" | "ErrImageNeverPull" => Retry::Never,
        "ImageInspectError" | "RegistryUnavailable" => Retry::UntilDeadline,
        _ if is_transient_error(message) || message.contains(KUBELET_PULL_LIMIT) => {
            Retry::UntilDeadline
        }
        // Older kubelets do not repeat the cause here.
        "ImagePullBackOff" if !message.contains("errimagepull") => Retry::UntilDeadline,
        _ if has_secrets && contains(&CREDENTIAL_ERRORS) => Retry::For(MISSING_CREDENTIALS),
        _ => Retry::For(ONE_RETRY),
    }
}

/// The retry of a failed creation of a container.
pub fn retry_create(message: &str) -> Retry {
    if start_failure::permanent_cause(message).is_some() {
        Retry::Never
    } else if start_failure::probable_cause(message).is_some() {
        Retry::For(ONE_RETRY)
    } else {
        Retry::UntilDeadline
    }
}
