//! The registries from which a cluster may pull users' images. Pure.
//!
//! A pull runs outside of every network policy, so the name of an image must not select an address
//! of the operator's network.

use std::collections::BTreeSet;
use std::fmt;

use agentbox_contracts::error::Error;
use agentbox_runtime::image_reference::{canonical_registry, registry};
use serde::Deserialize;

use crate::environment::request::is_registry;

/// The registries of a cluster whose configuration lists none.
const DEFAULT: [&str; 3] = ["docker.io", "ghcr.io", "quay.io"];
/// Every registry with a public name: no address, no `localhost`, no name without a dot.
const ANY: &str = "*";

/// `host[:port]` of each allowed registry, or [`ANY`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct AllowedRegistries(BTreeSet<String>);

/// An entry is not the name of a registry.
#[derive(Debug, thiserror::Error)]
#[error("allowed_registries: must be names such as registry.example:5000, or `*`, has `{0}`")]
pub struct InvalidRegistry(String);

impl Default for AllowedRegistries {
    fn default() -> Self {
        Self(DEFAULT.map(str::to_owned).into())
    }
}

impl TryFrom<Vec<String>> for AllowedRegistries {
    type Error = InvalidRegistry;

    fn try_from(names: Vec<String>) -> Result<Self, InvalidRegistry> {
        for name in &names {
            if name != ANY && !is_registry(name) {
                return Err(InvalidRegistry(name.chars().take(80).collect()));
            }
        }
        Ok(Self(
            names.iter().map(|name| canonical_registry(name)).collect(),
        ))
    }
}

impl fmt::Display for AllowedRegistries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let name = match name.as_str() {
                ANY => "any public name",
                name => name,
            };
            write!(f, "{separator}{name}")?;
        }
        Ok(())
    }
}

impl AllowedRegistries {
    /// Whether the registry of `image` is allowed.
    #[must_use]
    pub fn allow(&self, image: &str) -> bool {
        self.allow_registry(registry(image))
    }

    /// Whether images of this registry, `host[:port]`, are allowed.
    #[must_use]
    pub fn allow_registry(&self, registry: &str) -> bool {
        let registry = canonical_registry(registry);
        self.0.contains(&registry) || (self.0.contains(ANY) && has_public_name(&registry))
    }

    /// The error for an image that is not allowed.
    #[must_use]
    pub fn refusal(&self, image: &str) -> Error {
        Error::value(
            "image",
            format_args!("must be from a registry that the operator allows ({self})"),
            image,
        )
    }
}

/// Whether `host[:port]` is a name of the public DNS by its form. Resolvers read a name whose last
/// label begins with a digit as an address: 127.0.0.1, 127.1, 0x7f000001.
fn has_public_name(registry: &str) -> bool {
    let host = registry.split(':').next().unwrap_or_default();
    match host.rsplit_once('.') {
        Some((_, last)) => {
            last != "localhost" && !last.starts_with(|first: char| first.is_ascii_digit())
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(names: &[&str]) -> AllowedRegistries {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        AllowedRegistries::try_from(names).unwrap()
    }

    #[test]
    fn image_of_another_registry_is_refused_with_the_list() {
        let default = AllowedRegistries::default();
        for image in [
            "busybox",
            "library/python:3.11",
            "docker.io/library/busybox",
            "index.docker.io/a/b",
            "GHCR.io/a/b:1",
            "quay.io/a/b",
        ] {
            assert!(default.allow(image), "{image}");
        }
        for image in [
            "127.0.0.1:5432/a/b",
            "127.1/a",
            "0x7f000001:80/a",
            "localhost/a",
            "localhost:5000/a",
            "a.localhost/b",
            "metadata.internal/a",
            "registry:5000/a",
            "docker.io:8443/a",
            "docker.io.evil.example/a",
        ] {
            assert!(!default.allow(image), "{image}");
        }
        let error = default.refusal("localhost/a");
        assert_eq!(
            error.message,
            "image: must be from a registry that the operator allows (docker.io, ghcr.io, \
             quay.io), is `localhost/a`"
        );
    }

    #[test]
    fn every_public_name_is_allowed_by_a_star_and_others_by_name() {
        let any = allowed(&["*", "127.0.0.1:5000", "registry:80"]);
        for (image, is_allowed) in [
            ("busybox", true),
            ("registry.example/a", true),
            ("registry.example:5000/a", true),
            ("127.0.0.1:5000/a", true),
            ("127.0.0.1:5001/a", false),
            ("registry:80/a", true),
            ("registry:81/a", false),
            ("localhost:5000/a", false),
            ("a.localhost:5000/a", false),
            ("10.1:5000/a", false),
        ] {
            assert_eq!(any.allow(image), is_allowed, "{image}");
        }
        assert!(!allowed(&[]).allow("busybox"));
    }

    #[test]
    fn entry_that_is_no_registry_is_refused() {
        for name in ["", "https://docker.io", "docker.io/library", "a b", "*.io"] {
            let names = vec![name.to_owned()];
            assert!(AllowedRegistries::try_from(names).is_err(), "{name}");
        }
    }
}
