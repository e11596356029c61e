//! Error messages of image pulls, which containerd writes on every kind of cluster. Pure.

/// The texts of errors of a registry or of the network after which a later attempt may succeed.
const TRANSIENT_ERRORS: [&str; 10] = [
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

/// Whether a later pull may succeed: the registry is busy, or the connection broke.
#[must_use]
pub fn is_transient_error(message: &str) -> bool {
    let lower = message.to_lowercase();
    TRANSIENT_ERRORS.iter().any(|text| lower.contains(text))
}

/// The texts of a registry's answers, and the cause that users read for each.
const PUBLIC_CAUSES: [(&str, &str); 9] = [
    // The answer of this deployment's registry proxy.
    (
        "413 payload too large",
        "it is larger than this cluster allows",
    ),
    ("403 forbidden", NO_SUCH_IMAGE),
    (
        "no match for platform",
        "it has no variant for this platform",
    ),
    ("too many requests", TOO_MANY_PULLS),
    ("toomanyrequests", TOO_MANY_PULLS),
    ("not found", NO_SUCH_IMAGE),
    ("denied", NO_SUCH_IMAGE),
    ("unauthorized", NO_SUCH_IMAGE),
    ("no basic auth credentials", NO_SUCH_IMAGE),
];
const TOO_MANY_PULLS: &str = "its registry accepts no further pulls for now";
const NO_SUCH_IMAGE: &str = "it does not exist, or its registry requires a login";

/// The cause of a failed pull for the user. The error itself is for the log: it may contain answers
/// of hosts in the operator's network.
#[must_use]
pub fn public_cause(message: &str) -> &'static str {
    let lower = message.to_lowercase();
    PUBLIC_CAUSES
        .iter()
        .find(|(text, _)| lower.contains(text))
        .map_or("its registry did not deliver it", |(_, cause)| *cause)
}

/// The innermost error of a chain of wrapped gRPC errors, bounded, on one line, and without paths of
/// the server.
#[must_use]
pub fn innermost_cause(message: &str) -> String {
    let text = message.trim();
    let cause = text.rsplit_once("desc = ").map_or(text, |(_, cause)| cause);
    without_paths(cause)
        .chars()
        .filter(|c| !c.is_control())
        .take(400)
        .collect()
}

/// Replaces each absolute path by `…`, because it may be a path of the server. The name of an image
/// and a URL are no paths.
#[must_use]
pub fn without_paths(text: &str) -> String {
    let starts_path =
        |previous: char| previous.is_whitespace() || "\"'`([{<=:,;".contains(previous);
    let ends_path = |c: char| c.is_whitespace() || "\"'`)]}>:,;".contains(c);
    let mut result = String::with_capacity(text.len());
    let mut previous = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let is_double = previous == ':' && rest.peek() == Some(&'/');
        if c == '/' && starts_path(previous) && !is_double {
            result.push('…');
            while rest.next_if(|next| !ends_path(*next)).is_some() {}
        } else {
            result.push(c);
        }
        previous = c;
    }
    result
}

/// The image's name for a message: bounded, on one line.
#[must_use]
pub fn printable_image(image: &str) -> String {
    image
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_busy_registry_and_broken_connection_are_transient() {
        for (message, transient) in [
            ("failed to resolve reference \"x\": x: not found", false),
            ("pull access denied", false),
            ("connect: connection refused", false),
            ("unexpected status: 429 Too Many Requests", true),
            // A digest with the digits of a status.
            ("docker.io/library/x@sha256:a429: not found", false),
            ("unexpected status: 503 Service Unavailable", true),
            ("read tcp: connection reset by peer", true),
        ] {
            assert_eq!(is_transient_error(message), transient, "{message}");
        }
    }

    #[test]
    fn paths_are_removed_and_names_and_urls_stay() {
        for (text, expected) in [
            (
                "mount callback failed on /var/lib/containerd/m1: open /etc/passwd: no space",
                "mount callback failed on …: open …: no space",
            ),
            ("lowerdir=/var/a:/var/b,x", "lowerdir=…:…,x"),
            ("(\"/run/x y\")", "(\"… y\")"),
            (
                "docker.io/library/x:1: Head \"https://registry.example/v2/x/manifests/1\": EOF",
                "docker.io/library/x:1: Head \"https://registry.example/v2/x/manifests/1\": EOF",
            ),
            ("a / b", "a … b"),
        ] {
            assert_eq!(without_paths(text), expected);
        }
    }

    #[test]
    fn cause_for_users_is_one_of_few_texts() {
        let undelivered = "its registry did not deliver it";
        for (message, cause) in [
            (
                "failed to resolve reference \"x\": x: not found",
                NO_SUCH_IMAGE,
            ),
            (
                "pull access denied, repository does not exist",
                NO_SUCH_IMAGE,
            ),
            (
                "no match for platform in manifest: not found",
                "it has no variant for this platform",
            ),
            ("unexpected status: 429 Too Many Requests", TOO_MANY_PULLS),
            (
                "unexpected status code http://127.0.0.1:5100/v2/x: 413 Payload Too Large",
                "it is larger than this cluster allows",
            ),
            ("unexpected status: 403 Forbidden", NO_SUCH_IMAGE),
            ("docker.io/library/x:429: not found", NO_SUCH_IMAGE),
            (
                "dial tcp 127.0.0.1:5432: connect: connection refused",
                undelivered,
            ),
            (
                "dial tcp: lookup db.internal on 10.0.0.2:53: no such host",
                undelivered,
            ),
            ("server answered SSH-2.0-OpenSSH", undelivered),
        ] {
            assert_eq!(public_cause(message), cause, "{message}");
        }
    }

    #[test]
    fn innermost_cause_is_the_last_description_on_one_line() {
        let wrapped =
            "rpc error: code = Unknown desc = rpc error: code = NotFound desc = x:\n gone";
        assert_eq!(innermost_cause(wrapped), "x: gone");
        assert_eq!(innermost_cause(" plain "), "plain");
    }
}
