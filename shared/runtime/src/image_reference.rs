//! Reads valid image references. Pure.
//!
//! ```text
//! [host[:port]/]component[/component…][:tag][@digest]
//! ```
//!
//! * I1. A driver passes the complete form to its cluster. containerd reads a short one also as the
//!   beginning of an image's id, which would select an image of any owner.

const DOCKER_HUB: &str = "docker.io";
/// Another name of Docker Hub.
const DOCKER_HUB_INDEX: &str = "index.docker.io";

/// The registry of an image, `host[:port]`, as the image names it. By the grammar the first component
/// is a host if it has a dot, a colon or an upper-case letter, or is `localhost`; else the image is
/// from Docker Hub.
#[must_use]
pub fn registry(image: &str) -> &str {
    split(image).0
}

/// A registry in lower case, with one name for Docker Hub.
#[must_use]
pub fn canonical_registry(registry: &str) -> String {
    let registry = registry.to_ascii_lowercase();
    if registry == DOCKER_HUB_INDEX {
        DOCKER_HUB.to_owned()
    } else {
        registry
    }
}

/// The complete name of an image's repository: `docker.io/library/python`.
#[must_use]
pub fn repository(image: &str) -> String {
    let (registry, path) = split(image);
    let (tagged, _) = split_digest(path);
    join(registry, split_tag(tagged).0)
}

/// The complete form of a reference, with a registry, and with a tag or a digest:
/// `docker.io/library/python:3.11-slim`. A tag beside a digest is left out.
#[must_use]
pub fn complete(image: &str) -> String {
    let (_, path) = split(image);
    let repository = repository(image);
    let (tagged, digest) = split_digest(path);
    match (digest, split_tag(tagged).1) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, Some(tag)) => format!("{repository}:{tag}"),
        (None, None) => format!("{repository}:latest"),
    }
}

/// The registry and the rest.
fn split(image: &str) -> (&str, &str) {
    let is_upper = |text: &str| text.bytes().any(|b| b.is_ascii_uppercase());
    match image.split_once('/') {
        Some((first, rest)) if first.eq_ignore_ascii_case(DOCKER_HUB_INDEX) => (DOCKER_HUB, rest),
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || is_upper(first) =>
        {
            (first, rest)
        }
        _ => (DOCKER_HUB, image),
    }
}

fn split_digest(path: &str) -> (&str, Option<&str>) {
    match path.split_once('@') {
        Some((tagged, digest)) => (tagged, Some(digest)),
        None => (path, None),
    }
}

/// Of a path without a host: every colon begins a tag.
fn split_tag(tagged: &str) -> (&str, Option<&str>) {
    match tagged.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (tagged, None),
    }
}

fn join(registry: &str, path: &str) -> String {
    let registry = canonical_registry(registry);
    if registry == DOCKER_HUB && !path.contains('/') {
        format!("{registry}/library/{path}")
    } else {
        format!("{registry}/{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_has_one_complete_form() {
        let pinned = format!("ghcr.io/a/b@sha256:{}", "0a".repeat(32));
        let tagged = pinned.replace('@', ":1@");
        for (image, repository, complete) in [
            (
                "busybox",
                "docker.io/library/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("INDEX.docker.io/a/b:1", "docker.io/a/b", "docker.io/a/b:1"),
            (
                "docker.io/python:3.11-slim",
                "docker.io/library/python",
                "docker.io/library/python:3.11-slim",
            ),
            (
                "localhost:5000/a",
                "localhost:5000/a",
                "localhost:5000/a:latest",
            ),
            (
                "Registry.example:5000/team/app:V1",
                "registry.example:5000/team/app",
                "registry.example:5000/team/app:V1",
            ),
            (tagged.as_str(), "ghcr.io/a/b", pinned.as_str()),
        ] {
            assert_eq!(super::repository(image), repository, "{image}");
            assert_eq!(super::complete(image), complete, "{image}");
            assert_eq!(super::complete(complete), complete, "{image}");
        }
    }

    #[test]
    fn reference_that_looks_like_an_id_names_a_repository() {
        let id = "0a".repeat(32);
        for (image, complete) in [
            (
                format!("sha256:{id}"),
                format!("docker.io/library/sha256:{id}"),
            ),
            (id.clone(), format!("docker.io/library/{id}:latest")),
            ("a".to_owned(), "docker.io/library/a:latest".to_owned()),
        ] {
            assert_eq!(super::complete(&image), complete);
        }
    }

    #[test]
    fn registry_is_the_host_or_docker_hub() {
        for (image, expected) in [
            ("a/b", "docker.io"),
            ("index.docker.io/a", "docker.io"),
            ("localhost/a", "localhost"),
            ("A/b", "A"),
            ("10.0.0.1:5000/a:1", "10.0.0.1:5000"),
        ] {
            assert_eq!(registry(image), expected, "{image}");
        }
        assert_eq!(canonical_registry("Index.docker.io"), "docker.io");
        assert_eq!(canonical_registry("GHCR.io"), "ghcr.io");
    }
}
