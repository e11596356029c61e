//! A box's Pod: boxd as the container's entry, the user's command behind it, limits and
//! rights. Pure.
//!
//! * I1. `command`, when given, replaces the image's ENTRYPOINT and CMD, as Kubernetes'
//!   `command` does; without one both are ignored too, and the box idles.
//! * I2. boxd comes from an image of the deployment, and is read-only in the box.
//! * I3. No service account token, no host namespace, no host path.
//! * I4. The user's image is pulled with the logins of [`crate::pull_secret`] and of the shared pull
//!   secrets only.
//! * I5. Kubernetes changes no text of the user: each one that it would expand is escaped.

use std::collections::BTreeMap;

use agentbox_box_protocol::{output, variables};
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::image_reference::{self, complete};
use agentbox_runtime::{BoxSpec, CAPABILITIES, SecurityContext};
use serde_json::{Value, json};

use crate::cluster::namespace_of;
use crate::config::{Config, Delivery, PresentImages};
use crate::labels;
use crate::objects::{MAIN, PULL_SECRET, SECRET, SERVICE_ACCOUNT};

/// The paths of boxd and of its output inside a box.
const PROGRAMS: &str = "/.agentbox/bin";
const BOXD: &str = "/.agentbox/bin/boxd";
const OUTPUT: &str = "/.agentbox/output";
/// The volume with boxd.
const VOLUME: &str = "programs";
/// The file with a container's termination message for the kubelet.
const TERMINATION_FILE: &str = "/dev/termination-log";

/// The annotations by which network plugins bound a Pod, in each direction: the bandwidth plugin of
/// CNI and Calico, and Calico alone.
const BANDWIDTH: [&str; 2] = [
    "kubernetes.io/ingress-bandwidth",
    "kubernetes.io/egress-bandwidth",
];
const CONNECTIONS: [&str; 2] = [
    "qos.projectcalico.org/ingressMaxConnections",
    "qos.projectcalico.org/egressMaxConnections",
];

/// The grace period when Kubernetes itself ends a Pod. A caller's grace period is boxd's
/// ([`crate::ending`]).
pub const GRACE_S: u32 = 1;

/// `has_logins`: the box's namespace has the Secret [`PULL_SECRET`].
pub fn pod(config: &Config, spec: &BoxSpec, has_logins: bool) -> Value {
    let resources = resources(config, spec);
    let security = security(spec.isolation.security_context.as_ref());
    let (programs, init_containers) = boxd(config, &resources);
    let mut volumes = vec![
        programs,
        in_memory("output", &output::DIRECTORY_BYTES.to_string()),
    ];
    let mut mounts = vec![
        json!({ "name": VOLUME, "mountPath": PROGRAMS, "readOnly": true }),
        json!({ "name": "output", "mountPath": OUTPUT }),
    ];
    for (name, path) in files_in_memory(spec) {
        volumes.push(in_memory(name, &spec.resources.memory.to_string()));
        mounts.push(json!({ "name": name, "mountPath": path }));
    }
    let mut body = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "hostname": spec.id.to_string(),
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "nodeSelector": node_selector(config, spec),
        "tolerations": spec.tolerations,
        "volumes": volumes,
        "initContainers": init_containers,
        "containers": [{
            "name": MAIN,
            "image": image_reference::complete(&spec.image),
            "imagePullPolicy": pull_policy(config.present_images),
            "command": command(spec.command.as_deref()),
            "env": environment(spec),
            "resources": resources,
            "securityContext": security,
            "terminationMessagePath": TERMINATION_FILE,
            "terminationMessagePolicy": "File",
            "volumeMounts": mounts,
        }],
    });
    let class = spec.isolation.runtime_class.as_ref();
    match class.or(config.default_runtime_class.as_ref()) {
        Some(class) => body["runtimeClassName"] = json!(class),
        // A runtime with a kernel of its own, such as gVisor, may refuse it.
        None if config.user_namespaces => body["hostUsers"] = json!(false),
        None => {}
    }
    if !config.dns_servers.is_empty() {
        body["dnsPolicy"] = json!("None");
        body["dnsConfig"] = json!({ "nameservers": config.dns_servers });
    }
    let own = has_logins.then_some(PULL_SECRET);
    let shared = config.shared_pull_secrets.iter().map(String::as_str);
    let secrets: Vec<Value> = own
        .into_iter()
        .chain(shared)
        .map(|name| json!({ "name": name }))
        .collect();
    if !secrets.is_empty() {
        body["imagePullSecrets"] = json!(secrets);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": MAIN,
            "namespace": namespace_of(&spec.id),
            "labels": labels::owned_labels(&config.deployment, spec),
            "annotations": annotations(config, spec),
        },
        "spec": body,
    })
}

/// The user's labels, the bounds of the box on the network, whether a login of its owner pulls the
/// image, and whether it was created warm.
fn annotations(config: &Config, spec: &BoxSpec) -> BTreeMap<String, String> {
    let mut annotations = labels::annotations(spec);
    if spec.image_credential.is_some() {
        annotations.insert(labels::OWNER_LOGIN.to_owned(), "true".to_owned());
    }
    if spec.warm {
        annotations.insert(labels::WARM.to_owned(), "true".to_owned());
    }
    for (keys, bound) in [
        (BANDWIDTH, config.network_bandwidth),
        (CONNECTIONS, config.network_connections),
    ] {
        if let Some(bound) = bound {
            annotations.extend(keys.map(|key| (key.to_owned(), bound.to_string())));
        }
    }
    annotations
}

/// The policy of the user's image. By `IfNotPresent` alone a node gives a private image that it has
/// to every user.
const fn pull_policy(present_images: PresentImages) -> &'static str {
    match present_images {
        PresentImages::Pull => "Always",
        PresentImages::Kubelet => "IfNotPresent",
    }
}

/// A volume whose content counts as the box's memory.
fn in_memory(name: &str, size: &str) -> Value {
    json!({ "name": name, "emptyDir": { "medium": "Memory", "sizeLimit": size } })
}

/// The volumes in memory that are as large as the box's memory limit, with their paths. `/tmp` is
/// one of them if the root file system is read-only.
fn files_in_memory(spec: &BoxSpec) -> Vec<(&'static str, &'static str)> {
    let security = spec.isolation.security_context.as_ref();
    let is_root_read_only = security.and_then(|context| context.read_only_root_filesystem);
    let mut files = vec![("shm", "/dev/shm")];
    if is_root_read_only == Some(true) {
        files.push(("tmp", "/tmp"));
    }
    files
}

/// The volume with boxd, and the init containers that fill it.
fn boxd(config: &Config, resources: &Value) -> (Value, Value) {
    match config.boxd_delivery {
        Delivery::ImageVolume => {
            let image =
                json!({ "reference": complete(&config.boxd_image), "pullPolicy": "IfNotPresent" });
            (json!({ "name": VOLUME, "image": image }), json!([]))
        }
        Delivery::InitContainer => {
            let copy = json!({
                "name": "boxd",
                "image": complete(&config.boxd_image),
                "imagePullPolicy": "IfNotPresent",
                "command": ["/boxd", "install", BOXD],
                "resources": resources,
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                    "readOnlyRootFilesystem": true,
                },
                "volumeMounts": [{ "name": VOLUME, "mountPath": PROGRAMS }],
            });
            let empty = json!({ "name": VOLUME, "emptyDir": { "sizeLimit": "64Mi" } });
            (empty, json!([copy]))
        }
    }
}

/// The node selector without the labels of the whole cluster: nodes need not have those.
pub fn node_selector(config: &Config, spec: &BoxSpec) -> BTreeMap<String, String> {
    let mut selector = spec.node_selector.clone();
    selector.retain(|key, value| config.labels.get(key) != Some(value));
    selector
}

fn command(requested: Option<&[String]>) -> Vec<String> {
    let mut command = vec![BOXD.to_owned(), "run".to_owned()];
    if let Some(requested) = requested.filter(|words| !words.is_empty()) {
        command.push("--".to_owned());
        command.extend(requested.iter().map(|word| escaped(word)));
    }
    command
}

/// Escapes a text that Kubernetes expands: a word of a command, or a variable's value. Kubernetes
/// replaces `$(NAME)` by a variable's value, and `$$` by `$`.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}

/// The user's variables, then boxd's. Neither a user nor an image can set boxd's.
fn environment(spec: &BoxSpec) -> Vec<Value> {
    let user_variables = spec
        .env
        .iter()
        .filter(|(key, _)| !key.starts_with(variables::PREFIX))
        .map(|(key, value)| json!({ "name": key, "value": escaped(value) }));
    let warm = if spec.warm { "true" } else { "" };
    let boxd_variables = [
        (variables::LISTEN, variables::DEFAULT_LISTEN.to_owned()),
        (variables::OUTPUT_DIR, OUTPUT.to_owned()),
        (variables::TERMINATION_FILE, TERMINATION_FILE.to_owned()),
        (variables::WARM, warm.to_owned()),
        (variables::RENEW_IDENTITY, "true".to_owned()),
    ]
    .map(|(name, value)| json!({ "name": name, "value": value }));
    let token = json!({ "name": variables::TOKEN, "valueFrom": { "secretKeyRef": {
        "name": SECRET, "key": variables::TOKEN,
    }}});
    let unset = variables::UNSET.map(|name| json!({ "name": name, "value": "" }));
    user_variables
        .chain(boxd_variables)
        .chain(unset)
        .chain([token])
        .collect()
}

/// Requests decide where a box is scheduled. Limits bound the resources that it uses.
fn resources(config: &Config, spec: &BoxSpec) -> Value {
    let limits = spec.resources;
    let cpu = MilliCpu((limits.cpu.0 / config.cpu_overcommit).max(1));
    let memory = Bytes((limits.memory.0 / config.memory_overcommit).max(1));
    json!({
        "limits": {
            "cpu": limits.cpu.to_string(),
            "memory": limits.memory.to_string(),
            "ephemeral-storage": limits.storage.to_string(),
        },
        "requests": {
            "cpu": cpu.to_string(),
            "memory": memory.to_string(),
            "ephemeral-storage": "0",
        },
    })
}

fn security(requested: Option<&SecurityContext>) -> Value {
    let default = SecurityContext::default();
    let requested = requested.unwrap_or(&default);
    let mut security = json!({
        "allowPrivilegeEscalation": requested.allow_privilege_escalation.unwrap_or(false),
        "readOnlyRootFilesystem": requested.read_only_root_filesystem.unwrap_or(false),
        "runAsNonRoot": requested.run_as_non_root.unwrap_or(false),
        "capabilities": { "drop": ["ALL"], "add": CAPABILITIES },
    });
    for (name, value) in [
        ("runAsUser", requested.run_as_user),
        ("runAsGroup", requested.run_as_group),
    ] {
        if let Some(value) = value {
            security[name] = json!(value);
        }
    }
    security
}

#[cfg(test)]
mod tests {
    use agentbox_runtime::Toleration;
    use agentbox_runtime::conformance::example_spec as spec;
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn config() -> Config {
        serde_json::from_value(crate::config::tests::minimal()).unwrap()
    }

    fn manifest(change: impl FnOnce(&mut BoxSpec)) -> Value {
        pod(&config(), &spec(change), false)
    }

    #[test]
    fn manifest_deserializes_as_a_pod() {
        let manifest = manifest(|spec| {
            spec.command = Some(vec!["sh".into()]);
            spec.tolerations = vec![Toleration {
                key: Some("gpu".into()),
                operator: Some("Exists".into()),
                value: None,
                effect: Some("NoSchedule".into()),
                toleration_seconds: None,
            }];
            spec.isolation.runtime_class = Some("gvisor".into());
        });
        let typed: Pod = serde_json::from_value(manifest).unwrap();
        let spec = typed.spec.unwrap();
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!(spec.runtime_class_name.as_deref(), Some("gvisor"));
        assert_eq!(spec.tolerations.unwrap()[0].key.as_deref(), Some("gpu"));
        assert!(spec.host_network.is_none() && spec.host_pid.is_none());
    }

    #[test]
    fn warm_box_starts_an_unconfigured_boxd_and_has_no_owner() {
        let variable = |pod: &Value| {
            let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
            let found = env.iter().find(|v| v["name"] == variables::WARM);
            found.unwrap()["value"].clone()
        };
        let (warm, cold) = (manifest(|spec| spec.warm = true), manifest(|_| {}));
        assert_eq!(
            (variable(&warm), variable(&cold)),
            (json!("true"), json!(""))
        );
        let metadata = &warm["metadata"];
        assert_eq!(metadata["annotations"][labels::WARM], "true");
        assert_eq!(metadata["labels"][labels::OWNER], Value::Null);
        assert_eq!(cold["metadata"]["annotations"][labels::WARM], Value::Null);
    }

    #[test]
    fn default_runtime_class_applies_to_a_spec_without_one() {
        let mut config = config();
        let class = |config: &Config, requested: Option<&str>| {
            let spec = spec(|spec| spec.isolation.runtime_class = requested.map(str::to_owned));
            pod(config, &spec, false)["spec"]["runtimeClassName"].clone()
        };
        assert_eq!(class(&config, None), Value::Null);
        config.default_runtime_class = Some("gvisor".to_owned());
        assert_eq!(class(&config, None), "gvisor");
        assert_eq!(class(&config, Some("kata")), "kata");
    }

    #[test]
    fn user_namespaces_apply_to_a_spec_without_a_runtime_class() {
        let mut config = config();
        let host_users = |config: &Config, class: Option<&str>| {
            let spec = spec(|spec| spec.isolation.runtime_class = class.map(str::to_owned));
            pod(config, &spec, false)["spec"]["hostUsers"].clone()
        };
        assert_eq!(host_users(&config, None), Value::Null);
        config.user_namespaces = true;
        assert_eq!(host_users(&config, None), false);
        assert_eq!(host_users(&config, Some("gvisor")), Value::Null);
    }

    #[test]
    fn boxd_mount_is_read_only_for_every_delivery() {
        for (delivery, kind, copies) in [
            (Delivery::InitContainer, "emptyDir", 1),
            (Delivery::ImageVolume, "image", 0),
        ] {
            let mut config = config();
            config.boxd_delivery = delivery;
            let spec = &pod(&config, &spec(|_| {}), false)["spec"];
            let mount = &spec["containers"][0]["volumeMounts"][0];
            assert_eq!(mount["readOnly"], true, "{delivery:?}");
            assert_eq!(mount["name"], spec["volumes"][0]["name"], "{delivery:?}");
            assert!(spec["volumes"][0][kind].is_object(), "{delivery:?}");
            let inits = spec["initContainers"].as_array().unwrap();
            assert_eq!(inits.len(), copies, "{delivery:?}");
        }
    }

    #[test]
    fn user_environment_replaces_no_boxd_variable() {
        let manifest = manifest(|spec| {
            spec.env.insert(variables::TOKEN.into(), "mine".into());
        });
        let env = manifest["spec"]["containers"][0]["env"].as_array().unwrap();
        let named = |name: &str| env.iter().filter(|v| v["name"] == name).collect::<Vec<_>>();
        assert_eq!(named(variables::TOKEN).len(), 1);
        assert!(named(variables::TOKEN)[0]["value"].is_null());
        // Empty, so that the image's value is replaced.
        for name in variables::UNSET {
            assert_eq!(named(name).len(), 1, "{name}");
            assert_eq!(named(name)[0]["value"], "", "{name}");
        }
    }

    #[test]
    fn every_dollar_of_the_user_is_escaped() {
        for (text, in_manifest) in [
            ("$(B)", "$$(B)"),
            ("kill -9 $$", "kill -9 $$$$"),
            ("$$(B)", "$$$$(B)"),
            ("$B $", "$$B $$"),
            ("plain", "plain"),
        ] {
            let manifest = manifest(|spec| {
                spec.env.insert("A".into(), text.into());
                spec.command = Some(vec!["echo".into(), text.into()]);
            });
            let container = &manifest["spec"]["containers"][0];
            assert_eq!(container["command"][4], in_manifest);
            assert_eq!(container["env"][0]["value"], in_manifest);
        }
    }

    #[test]
    fn requests_are_limits_divided_by_the_overcommit() {
        let manifest = manifest(|_| {});
        let resources = &manifest["spec"]["containers"][0]["resources"];
        assert_eq!(resources["limits"]["cpu"], "100m");
        assert_eq!(resources["limits"]["memory"], "64Mi");
        assert_eq!(resources["limits"]["ephemeral-storage"], "1Gi");
        assert_eq!(resources["requests"]["cpu"], "5m");
        assert_eq!(resources["requests"]["memory"], "16Mi");
    }

    #[test]
    fn bounds_on_the_network_are_annotations() {
        let mut config = config();
        let annotations =
            |config: &Config| pod(config, &spec(|_| {}), false)["metadata"]["annotations"].clone();
        let bounded = annotations(&config);
        for (keys, value) in [(BANDWIDTH, "1000000000"), (CONNECTIONS, "4096")] {
            for key in keys {
                assert_eq!(bounded[key], value, "{key}");
            }
        }
        (config.network_bandwidth, config.network_connections) = (None, None);
        assert_eq!(annotations(&config), json!({}));
    }

    #[test]
    fn cluster_label_is_left_out_of_the_node_selector() {
        let mut config = config();
        config.labels.insert("region".into(), "eu".into());
        let selector = |key: &str, value: &str| {
            let spec = spec(|spec| drop(spec.node_selector.insert(key.into(), value.into())));
            pod(&config, &spec, false)["spec"]["nodeSelector"].clone()
        };
        assert_eq!(selector("region", "eu"), json!({}));
        assert_eq!(selector("region", "us"), json!({ "region": "us" }));
    }

    #[test]
    fn rights_that_were_not_requested_are_denied() {
        let manifest = manifest(|_| {});
        let security = &manifest["spec"]["containers"][0]["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        assert!(security["privileged"].is_null() && security["runAsUser"].is_null());
    }
}
