//! The logins with which a node pulls the images of one box. Pure.
//!
//! * I1. A login of `image_pull_secrets` is for the repository of boxd's image alone. The kubelet
//!   compares the beginning of an image's name, so a user's image of the same registry is pulled
//!   without it.
//! * I2. The owner's login is for the registry of the owner's image alone.

use agentbox_runtime::BoxSpec;
use agentbox_runtime::image_reference::{canonical_registry, registry, repository};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

/// The key by which the kubelet finds a login at Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The login of a pull secret for boxd's image, with its key in `auths`.
pub fn boxd_login(boxd_image: &str, secret: &Secret) -> Option<(String, Value)> {
    let repository = repository(boxd_image);
    let logins = logins_of(secret)?;
    let logins = logins.as_object()?;
    let matching = logins
        .iter()
        .filter_map(|(key, login)| Some((matched_length(key, &repository)?, login)));
    // The most specific one, as the kubelet chooses.
    let (_, login) = matching.max_by_key(|(length, _)| *length)?;
    Some((repository, login.clone()))
}

/// The owner's login, with its key in `auths`.
pub fn owner_login(spec: &BoxSpec) -> Option<(String, Value)> {
    let credential = spec.image_credential.as_ref()?;
    let registry = canonical_registry(registry(&spec.image));
    let key = if registry == "docker.io" {
        DOCKER_HUB_KEY.to_owned()
    } else {
        registry
    };
    let login = json!({ "username": credential.username, "password": credential.password });
    Some((key, login))
}

/// The logins by their keys, in either format of Docker's clients.
fn logins_of(secret: &Secret) -> Option<Value> {
    let data = secret.data.as_ref()?;
    if let Some(config) = data.get(".dockerconfigjson") {
        let mut config: Value = serde_json::from_slice(&config.0).ok()?;
        return Some(config.get_mut("auths")?.take());
    }
    serde_json::from_slice(&data.get(".dockercfg")?.0).ok()
}

/// How much of a repository's name a key matches, in bytes; `None` if it is for another one.
fn matched_length(key: &str, repository: &str) -> Option<usize> {
    let key = key.strip_prefix("https://").unwrap_or(key);
    let key = key.strip_prefix("http://").unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").unwrap_or(key);
    let key = key.strip_suffix("/v2").unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let (registry, name) = repository.split_once('/')?;
    let is_host = matches_host(&canonical_registry(host), registry);
    let is_path = path.is_empty()
        || name
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    (is_host && is_path).then_some(key.len())
}

/// Whether a host is the registry's. A label `*` matches every label.
fn matches_host(pattern: &str, registry: &str) -> bool {
    let (patterns, labels) = (pattern.split('.'), registry.split('.'));
    pattern.split('.').count() == registry.split('.').count()
        && patterns
            .zip(labels)
            .all(|(pattern, label)| pattern == "*" || pattern == label)
}

#[cfg(test)]
mod tests {
    use agentbox_runtime::RegistryCredential;
    use agentbox_runtime::conformance::example_spec;

    use super::*;

    fn secret(format: &str, content: &Value) -> Secret {
        serde_json::from_value(json!({
            "metadata": { "name": "registry" },
            "data": { format: k8s_openapi::ByteString(content.to_string().into_bytes()) },
        }))
        .unwrap()
    }

    #[test]
    fn deployments_login_is_for_the_repository_of_boxd_alone() {
        let login = json!({ "username": "operator", "password": "secret" });
        let boxd = "registry.example:5000/team/boxd:1";
        for (key, matches) in [
            ("registry.example:5000", true),
            ("https://registry.example:5000/v2/", true),
            ("registry.example:5000/team", true),
            ("*.example:5000", true),
            ("registry.example", false),
            ("registry.example:5000/tea", false),
            ("registry.example:5000/other", false),
            ("*:5000", false),
            ("https://index.docker.io/v1/", false),
        ] {
            let auths = json!({ key: login });
            for (format, content) in [
                (".dockerconfigjson", json!({ "auths": auths })),
                (".dockercfg", auths.clone()),
            ] {
                let got = boxd_login(boxd, &secret(format, &content));
                let expected = ("registry.example:5000/team/boxd".to_owned(), login.clone());
                assert_eq!(got, matches.then_some(expected), "{key} {format}");
            }
        }
        let auths = json!({ "https://index.docker.io/v1/": login });
        let hub = secret(".dockerconfigjson", &json!({ "auths": auths }));
        let (key, _) = boxd_login("team/boxd", &hub).unwrap();
        assert_eq!(key, "docker.io/team/boxd");
        let empty = secret(".dockerconfigjson", &json!({}));
        assert_eq!(boxd_login(boxd, &empty), None);
    }

    #[test]
    fn owners_login_is_for_the_registry_of_its_image() {
        for (image, key) in [
            ("busybox", DOCKER_HUB_KEY),
            ("Registry.example:5000/a", "registry.example:5000"),
        ] {
            let spec = example_spec(|spec| {
                image.clone_into(&mut spec.image);
                spec.image_credential = Some(RegistryCredential {
                    username: "ada".to_owned(),
                    password: "secret".to_owned(),
                });
            });
            let login = json!({ "username": "ada", "password": "secret" });
            assert_eq!(owner_login(&spec), Some((key.to_owned(), login)));
        }
        assert_eq!(owner_login(&example_spec(|_| {})), None);
    }
}
