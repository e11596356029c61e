//! The rule for image references: the grammar that registries and container runtimes share
//! (the `reference` package of CNCF Distribution).
//!
//! ```text
//! [host[:port]/]component[/component…][:tag][@digest]
//! ```

use agentbox_contracts::environment::MAX_IMAGE_LENGTH;
use agentbox_contracts::error::Error;

/// The longest name: host and path together, in characters.
const MAX_NAME_LENGTH: usize = 255;
const MAX_TAG_LENGTH: usize = 128;

/// Checks an image reference. Whether the image exists is known when it is pulled.
///
/// # Errors
/// `Validation`, with the rule that it breaks.
pub fn image(text: &str) -> Result<(), Error> {
    check(text).map_err(|rule| Error::value("image", rule, text))
}

fn check(text: &str) -> Result<(), String> {
    if !(1..=MAX_IMAGE_LENGTH).contains(&text.len()) {
        return Err(format!("must have 1 to {MAX_IMAGE_LENGTH} characters"));
    }
    let (tagged, digest) = split(text, '@');
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err(
            "must have a digest such as `sha256:` and 64 lower-case hexadecimal digits after `@`"
                .to_owned(),
        );
    }
    // A colon before the last slash begins a port.
    let last = tagged.rfind('/').map_or(0, |slash| slash + 1);
    let (_, tag) = split(&tagged[last..], ':');
    let name = match tag {
        Some(tag) => &tagged[..tagged.len() - tag.len() - 1],
        None => tagged,
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(format!(
            "must have a tag of 1 to {MAX_TAG_LENGTH} letters, digits, `_`, `.` and `-` after \
             the last `:`"
        ));
    }
    if name.len() > MAX_NAME_LENGTH {
        return Err(format!(
            "must have at most {MAX_NAME_LENGTH} characters before the tag"
        ));
    }
    let (first, path) = split(name, '/');
    let is_path = |path: &str| path.split('/').all(is_component);
    let is_name = match path {
        Some(path) => (is_host(first) || is_component(first)) && is_path(path),
        None => is_component(first),
    };
    if is_name {
        Ok(())
    } else {
        Err("must be an image reference such as `python:3.11-slim` or \
             `registry.example:5000/team/image`, in lower case and without a scheme"
            .to_owned())
    }
}

/// Whether `text` is the name of a registry, `host[:port]`.
#[must_use]
pub fn is_registry(text: &str) -> bool {
    is_host(text)
}

fn split(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// Lower-case letters and digits, with `.`, `_`, `__` or hyphens between them.
fn is_component(text: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |between: &str| {
        matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-')
    };
    text.starts_with(is_alphanumeric)
        && text.ends_with(is_alphanumeric)
        && text.split(is_alphanumeric).all(is_separator)
}

fn is_host(text: &str) -> bool {
    let (host, port) = split(text, ':');
    let is_label = |label: &str| {
        label.starts_with(|c: char| c.is_ascii_alphanumeric())
            && label.ends_with(|c: char| c.is_ascii_alphanumeric())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let is_port =
        |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_tag(text: &str) -> bool {
    (1..=MAX_TAG_LENGTH).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn is_digest(text: &str) -> bool {
    let (algorithm, digits) = split(text, ':');
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    digits.is_some_and(|digits| {
        digits.len() == length
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_in_the_grammar_is_accepted() {
        let digest = format!("busybox@sha256:{}", "0a".repeat(32));
        let long = "a".repeat(MAX_NAME_LENGTH);
        for text in [
            "busybox",
            "python:3.11-slim",
            "library/python",
            "ghcr.io/a/b-c_d__e.f---g/h:V1.0_x-y",
            "localhost:5000/a",
            "127.0.0.1:5000/a/b:1",
            "REGISTRY.example/a",
            "a/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            &format!("x:1@sha512:{}", "f".repeat(128)),
            &digest,
            &long,
        ] {
            assert_eq!(image(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn other_text_is_refused_with_the_value() {
        let long = "a".repeat(MAX_NAME_LENGTH + 1);
        let longer = "a/".repeat(MAX_IMAGE_LENGTH);
        let tag = format!("a:{}", "t".repeat(MAX_TAG_LENGTH + 1));
        for text in [
            "",
            "http://x/y",
            "https://registry.example/a:1",
            "docker.io//a",
            "/a",
            "a/",
            "Python",
            "a/B",
            "a b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a:",
            "a:-1",
            "a:b:c",
            "a:b/c",
            "host:/a",
            "host:123456/a",
            "host.:5000/a",
            "[::1]:5000/a",
            "a@",
            "a@sha256:",
            "a@sha256:00",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "a@sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
            "ä",
            "a\0",
            &long,
            &longer,
            &tag,
        ] {
            let error = image(text).unwrap_err();
            assert!(error.message.starts_with("image: must "), "{text}: {error}");
            assert!(error.message.contains(", is `"), "{text}: {error}");
        }
    }
}
