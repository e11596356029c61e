//! The manifests of a box except its Pod. Each is complete, for server-side apply. Pure.

use std::collections::BTreeMap;

use agentbox_box_protocol::variables;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_runtime::{BoxSpec, NetworkPolicy};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::box_state::{GENERATION, NETWORK_POLICY};
use crate::cluster::namespace_of;
use crate::config::Config;
use crate::labels;
use crate::policy;

/// The name of a box's Pod, and of each object that exists once in a box.
pub const MAIN: &str = "main";
/// The Secret with the token that the box's boxd accepts.
pub const SECRET: &str = "boxd";
/// The Secret with the logins of image pulls.
pub const PULL_SECRET: &str = "pull";
pub const SERVICE_ACCOUNT: &str = "box";
pub const QUOTA: &str = "box";
/// The addresses of nodes that a box's network policy excludes because of the nodes alone, and not
/// of the configuration.
const NODES: &str = "agentbox.dev/nodes";
const PODS: u32 = 4;

fn metadata(config: &Config, id: &EnvironmentId, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": namespace_of(id),
        "labels": labels::box_labels(&config.deployment, id),
    })
}

pub fn namespace(
    config: &Config,
    spec: &BoxSpec,
    generation: i64,
    policy: &NetworkPolicy,
) -> Value {
    let mut labels = labels::owned_labels(&config.deployment, spec);
    labels.insert(
        "pod-security.kubernetes.io/enforce".to_owned(),
        config.pod_security.clone(),
    );
    let mut annotations = BTreeMap::from([
        (GENERATION, generation.to_string()),
        (NETWORK_POLICY, json!(policy).to_string()),
    ]);
    if spec.warm {
        annotations.insert(labels::WARM, "true".to_owned());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": namespace_of(&spec.id),
            "labels": labels,
            "annotations": annotations,
        },
    })
}

/// The policy of a box. Without an `owner` it opens no other box. `nodes` are the addresses of nodes
/// that the configuration does not list.
pub fn network_policy(
    config: &Config,
    id: &EnvironmentId,
    owner: Option<&UserId>,
    policy: &NetworkPolicy,
    nodes: &[IpNet],
) -> Value {
    let mut metadata = metadata(config, id, MAIN);
    if !nodes.is_empty() {
        metadata["annotations"] = json!({ NODES: nodes_annotation(nodes) });
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": policy::spec(policy, owner, config, nodes),
    })
}

/// The annotation of a network policy that excludes these addresses of nodes.
pub fn nodes_annotation(nodes: &[IpNet]) -> String {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    nodes.join(",")
}

/// The annotation of an existing network policy, as [`nodes_annotation`].
pub fn excluded_nodes(annotations: Option<&BTreeMap<String, String>>) -> &str {
    annotations
        .and_then(|annotations| annotations.get(NODES))
        .map_or("", String::as_str)
}

/// Limits the Pods of a box's namespace. The limit is above one, because an interrupted
/// creation counts until the quota's controller recounts, minutes later.
pub fn quota(config: &Config, id: &EnvironmentId) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": metadata(config, id, QUOTA),
        "spec": { "hard": { "pods": PODS.to_string() } },
    })
}

pub fn service_account(config: &Config, id: &EnvironmentId) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(config, id, SERVICE_ACCOUNT),
        "automountServiceAccountToken": false,
    })
}

pub fn secret(config: &Config, spec: &BoxSpec) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(config, &spec.id, SECRET),
        "stringData": { variables::TOKEN: spec.boxd_token },
    })
}

/// The Secret with the logins of this box's pulls alone, by registry or repository.
pub fn pull_secret(config: &Config, id: &EnvironmentId, logins: &BTreeMap<String, Value>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(config, id, PULL_SECRET),
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": json!({ "auths": logins }).to_string() },
    })
}

/// A copy of a shared pull secret of the system namespace.
pub fn shared_pull_secret(
    config: &Config,
    id: &EnvironmentId,
    name: &str,
    original: &Value,
) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(config, id, name),
        "type": original["type"],
        "data": original["data"],
    })
}

/// The headless Service that resolves to the Pod's address.
pub fn service(config: &Config, id: &EnvironmentId) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(config, id, MAIN),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": { labels::BOX: id.to_string() },
        },
    })
}

/// The Service `<id>.<system namespace>`: the endpoint of the public API.
pub fn endpoint(config: &Config, id: &EnvironmentId) -> Value {
    let target = format!("{MAIN}.{}.svc.{}", namespace_of(id), config.cluster_domain);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": id.to_string(),
            "namespace": config.system_namespace,
            "labels": labels::box_labels(&config.deployment, id),
        },
        "spec": { "type": "ExternalName", "externalName": target },
    })
}
