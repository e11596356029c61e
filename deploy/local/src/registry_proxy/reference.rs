//! The requests of a pull, as containerd sends them to another host than the registry. Pure.

use agentbox_runtime::image_reference::canonical_registry;
use reqwest::Url;

use super::guard::Guard;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Blob,
}

/// One manifest or blob of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    registry: String,
    repository: String,
    pub(super) kind: Kind,
    /// A tag or a digest.
    name: String,
}

impl Reference {
    /// Reads `/v2/<repository>/(manifests|blobs)/<name>` with `ns=<registry>`; `None` for another
    /// request.
    pub(super) fn parse(path: &str, query: &str) -> Option<Self> {
        let (rest, name) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
        let (repository, kind) = rest.rsplit_once('/')?;
        let kind = match kind {
            "manifests" => Kind::Manifest,
            "blobs" => Kind::Blob,
            _ => return None,
        };
        let registry = form_urlencoded::parse(query.as_bytes())
            .find_map(|(key, value)| (key == "ns").then_some(value))?;
        let fits = |text: &str, others: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || others.contains(c))
        };
        let is_repository = repository
            .split('/')
            .all(|part| fits(part, "._-") && !part.starts_with('.'));
        let is_valid =
            is_repository && fits(name, "._-:") && !name.starts_with('.') && fits(&registry, ".-:");
        is_valid.then(|| Self {
            registry: canonical_registry(&registry),
            repository: repository.to_owned(),
            kind,
            name: name.to_owned(),
        })
    }

    /// The place of the content.
    pub(super) fn url(&self, guard: &Guard) -> Option<Url> {
        let host = match self.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let kind = match self.kind {
            Kind::Manifest => "manifests",
            Kind::Blob => "blobs",
        };
        let scheme = guard.scheme_of(host);
        let (repository, name) = (&self.repository, &self.name);
        Url::parse(&format!("{scheme}://{host}/v2/{repository}/{kind}/{name}")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(path: &str, query: &str) -> Option<String> {
        let exception = "http://127.0.0.1:5000".parse().unwrap();
        let guard = Guard::new(vec![exception], Vec::new());
        let reference = Reference::parse(path, query)?;
        reference.url(&guard).map(String::from)
    }

    #[test]
    fn request_of_a_pull_has_the_registrys_url() {
        for (path, query, expected) in [
            (
                "/v2/library/busybox/manifests/latest",
                "ns=docker.io",
                "https://registry-1.docker.io/v2/library/busybox/manifests/latest",
            ),
            (
                "/v2/a/b/blobs/sha256:00",
                "x=y&ns=Registry.example%3A5000",
                "https://registry.example:5000/v2/a/b/blobs/sha256:00",
            ),
            (
                "/v2/a/manifests/1",
                "ns=127.0.0.1:5000",
                "http://127.0.0.1:5000/v2/a/manifests/1",
            ),
        ] {
            assert_eq!(url(path, query).as_deref(), Some(expected));
        }
    }

    #[test]
    fn other_request_is_refused() {
        for (path, query) in [
            ("/v2/a/manifests/1", ""),
            ("/v2/a/manifests/1", "ns="),
            ("/v2/a/manifests/1", "ns=user@host"),
            ("/v2/a/manifests/1", "ns=host/path"),
            ("/v2/a/manifests/1", "ns=host%23"),
            ("/v2/a/tags/list", "ns=docker.io"),
            ("/v2/_catalog", "ns=docker.io"),
            ("/v2/a/manifests/", "ns=docker.io"),
            ("/v2//manifests/1", "ns=docker.io"),
            ("/v2/../manifests/1", "ns=docker.io"),
            ("/v2/a/manifests/..", "ns=docker.io"),
            ("/v2/a%2f/manifests/1", "ns=docker.io"),
            ("/a/manifests/1", "ns=docker.io"),
        ] {
            assert_eq!(url(path, query), None, "{path}?{query}");
        }
    }
}
