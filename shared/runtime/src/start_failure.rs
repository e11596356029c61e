//! Error messages of containers that did not start, which containerd, runc and the kubelet write.
//! Pure.
//!
//! * I1. A cause for the user is a text of this module and no part of a message, because messages
//!   contain paths of the server.

use crate::image_pull::printable_image;

/// Parts of messages in lower case, and the cause that each of them shows.
type Cause = (&'static [&'static str], &'static str);

/// Causes that follow from the image and the spec alone: no later attempt can succeed.
const PERMANENT_CAUSES: [Cause; 9] = [
    (
        &[
            "no users found",
            "unable to find user",
            "no matching entries in passwd",
            "no such user",
            "invalid user",
            "etc/passwd: no such file",
        ],
        "its user is not in its passwd file",
    ),
    (
        &[
            "no groups found",
            "unable to find group",
            "no matching entries in group",
            "etc/group: no such file",
        ],
        "its group is not in its group file",
    ),
    (
        &["runasnonroot", "run as root", "non-numeric user"],
        "run_as_non_root is set and its user is root or not numeric: give run_as_user",
    ),
    (
        &["cwd must be an absolute path"],
        "its working directory is not an absolute path",
    ),
    (
        &["chdir to cwd"],
        "its user cannot enter its working directory",
    ),
    // A name in its passwd or group file; image and spec are checked for numbers before.
    (
        &["to unmapped uid", "to unmapped gid"],
        "its user or group is above 65535, the last one of a user namespace: give run_as_user",
    ),
    (
        &["exec format error"],
        "it is for another processor architecture",
    ),
    (
        &["not a directory", "must be mounted on ordinary directory"],
        "a file of it is in the place of a directory that a box needs",
    ),
    (
        &["memory limit too low", "minimum memory limit"],
        "the memory limit is too low to start it",
    ),
];

/// Causes that usually follow from the image, but also from a volume that is not mounted yet.
const PROBABLE_CAUSES: [Cause; 2] = [
    (
        &["no such file or directory", "executable file not found"],
        "a file that its start needs is missing",
    ),
    (
        &["permission denied"],
        "its user lacks a permission that its start needs",
    ),
];

/// Causes of a failure that says nothing about a later attempt.
const TRANSIENT_CAUSES: [Cause; 1] = [(
    &["deadline exceeded", "deadlineexceeded"],
    "the container runtime did not start it in time: it is busy, or it waits for a passwd or group file \
     that is not a regular file",
)];

const UNKNOWN_CAUSE: &str = "the container runtime refuses to start it";

fn find(causes: &[Cause], message: &str) -> Option<&'static str> {
    let lower = message.to_lowercase();
    let is_shown = |(parts, _): &&Cause| parts.iter().any(|part| lower.contains(part));
    causes.iter().find(is_shown).map(|(_, cause)| *cause)
}

/// The cause of a failure after which no later attempt can succeed.
#[must_use]
pub fn permanent_cause(message: &str) -> Option<&'static str> {
    find(&PERMANENT_CAUSES, message)
}

/// The cause of a failure that is probably permanent.
#[must_use]
pub fn probable_cause(message: &str) -> Option<&'static str> {
    find(&PROBABLE_CAUSES, message)
}

/// The cause for the user.
#[must_use]
pub fn describe(message: &str) -> &'static str {
    permanent_cause(message)
        .or_else(|| probable_cause(message))
        .or_else(|| find(&TRANSIENT_CAUSES, message))
        .unwrap_or(UNKNOWN_CAUSE)
}

/// The message for the user about an image that cannot run.
#[must_use]
pub fn cannot_run(image: &str, cause: &str) -> String {
    format!(
        "the image \"{}\" cannot run: {cause}",
        printable_image(image)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_is_found_in_the_messages_of_the_runtimes() {
        for (message, cause) in [
            (
                "failed to generate container spec: no users found",
                "its user is not in its passwd file",
            ),
            (
                "failed to mount /tmp/containerd-mount1: open /tmp/containerd-mount1/etc/passwd: \
                 no such file or directory",
                "its user is not in its passwd file",
            ),
            (
                "failed to generate container spec: no groups found",
                "its group is not in its group file",
            ),
            (
                "container has runAsNonRoot and image will run as root (pod: \"main\")",
                "run_as_non_root is set and its user is root or not numeric: give run_as_user",
            ),
            (
                "OCI runtime create failed: runc create failed: Cwd must be an absolute path: unknown",
                "its working directory is not an absolute path",
            ),
            (
                "OCI runtime create failed: chdir to cwd (\"/root\") set in config.json failed: \
                 permission denied",
                "its user cannot enter its working directory",
            ),
            (
                "runc create failed: unable to start container process: error during container init: \
                 cannot setuid to unmapped uid 70000 in user namespace",
                "its user or group is above 65535, the last one of a user namespace: give run_as_user",
            ),
            (
                "mkdir /var/lib/containerd/x/rootfs/.agentbox: not a directory",
                "a file of it is in the place of a directory that a box needs",
            ),
            (
                "failed to stat \"/var/lib/kubelet/x\": no such file or directory",
                "a file that its start needs is missing",
            ),
            (
                "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
                TRANSIENT_CAUSES[0].1,
            ),
            ("anything else", UNKNOWN_CAUSE),
        ] {
            assert_eq!(describe(message), cause, "{message}");
        }
    }

    #[test]
    fn failure_of_the_machine_is_not_permanent() {
        for message in [
            "failed to setup network for sandbox: no IP addresses available in range set",
            "context deadline exceeded",
            "write /var/lib/containerd/x: no space left on device",
        ] {
            assert_eq!(permanent_cause(message), None, "{message}");
        }
    }
}
