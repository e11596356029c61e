//! The labels and annotations of the driver's objects.
//!
//! * I1. The driver selects by labels under `agentbox.dev/`. A user's label is stored as an
//!   annotation under a prefix of its own, so that no selector finds it.

use std::collections::BTreeMap;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::BoxSpec;

pub const DEPLOYMENT: &str = "agentbox.dev/deployment";
pub const BOX: &str = "agentbox.dev/box";
pub const OWNER: &str = "agentbox.dev/owner";
/// The annotation of a Pod whose image is pulled with its owner's login.
pub const OWNER_LOGIN: &str = "agentbox.dev/owner-login";
/// The annotation of a Pod that was created warm, and of a namespace whose claim is not complete.
pub const WARM: &str = "agentbox.dev/warm";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const USER_PREFIX: &str = "user.agentbox.dev/";
/// Kubernetes refuses an object whose annotations are more than 256 KiB.
const MAX_USER_BYTES: usize = 200 << 10;

/// Selects every object of a deployment.
pub fn selector(deployment: &str) -> String {
    format!("{DEPLOYMENT}={deployment}")
}

/// The labels of every object of one box.
pub fn box_labels(deployment: &str, id: &EnvironmentId) -> BTreeMap<String, String> {
    BTreeMap::from([
        (MANAGED_BY.to_owned(), "agentbox".to_owned()),
        (DEPLOYMENT.to_owned(), deployment.to_owned()),
        (BOX.to_owned(), id.to_string()),
    ])
}

/// The labels of a box's namespace and of its Pod: also its owner. A warm box has none: no policy
/// opens it.
pub fn owned_labels(deployment: &str, spec: &BoxSpec) -> BTreeMap<String, String> {
    let mut labels = box_labels(deployment, &spec.id);
    if !spec.warm {
        labels.insert(OWNER.to_owned(), spec.owner.to_string());
    }
    labels
}

/// The user's labels as annotations, for operators.
pub fn annotations(spec: &BoxSpec) -> BTreeMap<String, String> {
    let mut remaining = MAX_USER_BYTES;
    spec.labels
        .iter()
        .map(|(key, value)| (format!("{USER_PREFIX}{key}"), value.clone()))
        .filter(|(key, _)| is_annotation_key(key))
        .take_while(|(key, value)| {
            let size = key.len() + value.len();
            let fits = size <= remaining;
            remaining = remaining.saturating_sub(size);
            fits
        })
        .collect()
}

/// Whether Kubernetes accepts the key. Others are left out, so that the box can be created.
fn is_annotation_key(key: &str) -> bool {
    let name = key.strip_prefix(USER_PREFIX).unwrap_or(key);
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let outer = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && outer(name.bytes().next())
        && outer(name.bytes().last())
}

/// The id in an object's labels.
pub fn id_of(labels: Option<&BTreeMap<String, String>>) -> Option<EnvironmentId> {
    labels?.get(BOX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_annotation_key_is_left_out() {
        for (key, fits) in [
            ("team", true),
            ("a.b_c-d", true),
            ("example.com/team", false),
            ("-a", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(
                is_annotation_key(&format!("{USER_PREFIX}{key}")),
                fits,
                "{key}"
            );
        }
        assert!(!is_annotation_key(&format!(
            "{USER_PREFIX}{}",
            "a".repeat(64)
        )));
    }
}
