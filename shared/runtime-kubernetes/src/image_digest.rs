//! The digest of an image, from the statuses of the Pods that run it.
//!
//! No API tells the content that a node would give a new box. The box that was started last shows it:
//!
//! * I1. If the nodes ask the registry for each box, the last start on any node has the current content.
//! * I2. Otherwise each node keeps the content that it has, so the digest is known only while the last
//!   starts on all nodes have the same. Two contents in turn would replace a pool's boxes forever.
//! * I3. A box that was pulled with its owner's login does not count: the registry may have shown that
//!   owner other content.

use std::collections::{BTreeMap, BTreeSet};

use agentbox_runtime::{RuntimeError, image_reference};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use crate::config::PresentImages;
use crate::context::Context;
use crate::labels;
use crate::objects::MAIN;
use crate::phase::main_status;
use crate::timestamps::from_kubernetes;

impl Context {
    /// The digest of the image, if it is known.
    pub async fn image_digest(&self, image: &str) -> Result<Option<String>, RuntimeError> {
        let pods: Api<Pod> = Api::all(self.cluster.client().await?.clone());
        let selector = labels::selector(&self.config.deployment);
        let pods = self.cluster.list(&pods, Some(&selector)).await?;
        let image = image_reference::complete(image);
        Ok(current(&pods, &image, self.config.present_images))
    }
}

/// The digest in a container's `imageID`. Runtimes write `docker.io/library/busybox@sha256:…`,
/// `docker-pullable://busybox@sha256:…`, and of an image that is in no repository `sha256:…`,
/// `docker://sha256:…` or the hexadecimal digits alone.
fn digest_of(image_id: &str) -> Option<String> {
    let end = image_id.rsplit(['@', '/']).next()?;
    let digits = end.strip_prefix("sha256:").unwrap_or(end);
    let is_digest = digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then(|| format!("sha256:{digits}"))
}

/// When, on which node and with which content a Pod started its box; `None`: it did not, or does not count.
fn start_of<'a>(pod: &'a Pod, image: &str) -> Option<(DateTime<Utc>, &'a str, String)> {
    let spec = pod.spec.as_ref()?;
    let main = spec.containers.iter().find(|main| main.name == MAIN)?;
    let annotations = pod.metadata.annotations.as_ref();
    let has_login = annotations.is_some_and(|all| all.contains_key(labels::OWNER_LOGIN));
    if main.image.as_deref() != Some(image) || has_login {
        return None;
    }
    let status = main_status(pod.status.as_ref()?)?;
    let state = status.state.as_ref()?;
    let running = state.running.as_ref().map(|now| &now.started_at);
    let ended = state.terminated.as_ref().map(|ended| &ended.started_at);
    let started_at = running.or(ended)?.as_ref()?;
    let digest = digest_of(&status.image_id)?;
    Some((
        from_kubernetes(started_at),
        spec.node_name.as_deref()?,
        digest,
    ))
}

/// The digest that the last starts show (I1, I2).
fn current(pods: &[Pod], image: &str, present_images: PresentImages) -> Option<String> {
    let mut last: BTreeMap<&str, (DateTime<Utc>, String)> = BTreeMap::new();
    for (started_at, node, digest) in pods.iter().filter_map(|pod| start_of(pod, image)) {
        let source = match present_images {
            PresentImages::Pull => "the registry",
            PresentImages::Kubelet => node,
        };
        let start = (started_at, digest);
        let known = last.entry(source).or_insert_with(|| start.clone());
        if *known < start {
            *known = start;
        }
    }
    let mut digests: BTreeSet<String> = last.into_values().map(|(_, digest)| digest).collect();
    let digest = digests.pop_first();
    digest.filter(|_| digests.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const IMAGE: &str = "docker.io/library/busybox:latest";

    fn hex(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn digest_is_read_from_the_image_ids_of_every_runtime() {
        let digits = hex('a');
        let digest = format!("sha256:{digits}");
        for before in [
            "docker.io/library/busybox@",
            "registry.example:5000/team/app@",
            "docker-pullable://busybox@",
            "docker://",
            "",
        ] {
            let id = format!("{before}{digest}");
            assert_eq!(digest_of(&id).as_ref(), Some(&digest), "{id}");
        }
        assert_eq!(digest_of(&digits), Some(digest));
        for id in [
            "",
            "docker.io/library/busybox:latest",
            "busybox@sha256:abc",
            &format!("sha256:{}g", &digits[1..]),
            &format!("sha512:{digits}{digits}"),
        ] {
            assert_eq!(digest_of(id), None, "{id}");
        }
    }

    /// A Pod that has started at this second, with this state, with content of this digit.
    fn pod(node: &str, second: u32, state: &str, digit: char) -> Pod {
        let mut state_fields = json!({ "startedAt": format!("2026-01-02T03:04:{second:02}Z") });
        if state == "terminated" {
            state_fields["exitCode"] = json!(0);
        }
        serde_json::from_value(json!({
            "metadata": { "name": MAIN },
            "spec": { "nodeName": node, "containers": [{ "name": MAIN, "image": IMAGE }] },
            "status": { "containerStatuses": [{
                "name": MAIN, "image": IMAGE, "ready": true, "restartCount": 0,
                "imageID": format!("docker.io/library/busybox@sha256:{}", hex(digit)),
                "state": { state: state_fields },
            }] },
        }))
        .unwrap()
    }

    fn digest(digit: char) -> Option<String> {
        Some(format!("sha256:{}", hex(digit)))
    }

    #[test]
    fn last_start_has_the_digest_if_the_registry_is_asked_for_each_box() {
        let pods = [
            pod("n1", 10, "running", 'a'),
            pod("n2", 30, "terminated", 'b'),
            pod("n1", 20, "running", 'a'),
        ];
        let of = |pods: &[Pod], image| current(pods, image, PresentImages::Pull);
        assert_eq!(of(&pods, IMAGE), digest('b'));
        assert_eq!(of(&pods, "docker.io/library/busybox:1"), None);
        assert_eq!(of(&[], IMAGE), None);
    }

    #[test]
    fn nodes_that_keep_different_contents_have_no_digest() {
        let of = |pods: &[Pod]| current(pods, IMAGE, PresentImages::Kubelet);
        let mut pods = vec![
            pod("n1", 10, "running", 'a'),
            pod("n1", 20, "running", 'b'),
            pod("n2", 15, "running", 'a'),
        ];
        assert_eq!(of(&pods[..2]), digest('b'));
        assert_eq!(of(&pods), None);
        pods.push(pod("n2", 30, "running", 'b'));
        assert_eq!(of(&pods), digest('b'));
    }

    #[test]
    fn box_of_a_login_and_box_that_has_not_started_do_not_count() {
        let change = |change: Value| {
            let mut changed = serde_json::to_value(pod("n1", 30, "running", 'b')).unwrap();
            for (path, value) in change.as_object().unwrap() {
                *changed.pointer_mut(path).unwrap() = value.clone();
            }
            serde_json::from_value::<Pod>(changed).unwrap()
        };
        let metadata = json!({ "name": MAIN, "annotations": { labels::OWNER_LOGIN: "true" } });
        let waiting = json!({ "waiting": {} });
        for uncounted in [
            change(json!({ "/metadata": metadata })),
            change(json!({ "/status/containerStatuses/0/state": waiting })),
            change(json!({ "/status/containerStatuses/0/imageID": "" })),
        ] {
            let pods = [pod("n1", 10, "running", 'a'), uncounted];
            assert_eq!(current(&pods, IMAGE, PresentImages::Pull), digest('a'));
        }
    }
}
