//! Snapshots of every object that the driver creates, for several specs.

use std::collections::BTreeMap;

use agentbox_runtime::conformance::example_spec;
use agentbox_runtime::{BoxSpec, NetworkPolicy, RegistryCredential, SecurityContext, Toleration};
use serde_json::{Value, json};

use crate::config::{Config, Delivery, PresentImages};
use crate::{objects, pod, pull_secret};

fn config() -> Config {
    let mut json = crate::config::tests::minimal();
    json["boxd_client_cidrs"] = json!(["10.9.0.1/32"]);
    json["blocked_egress_cidrs"] = json!(["203.0.113.0/24"]);
    json["shared_pull_secrets"] = json!(["registry"]);
    json["labels"] = json!({ "region": "eu" });
    serde_json::from_value(json).unwrap()
}

/// An example with fixed ids.
fn spec(change: impl FnOnce(&mut BoxSpec)) -> BoxSpec {
    example_spec(|spec| {
        spec.id = "env-0123456789abcdef".parse().unwrap();
        spec.owner = "user-0123456789abcdef".parse().unwrap();
        "token".clone_into(&mut spec.boxd_token);
        change(spec);
    })
}

/// Every object of a box, as it is sent to the API server.
fn objects(config: &Config, spec: &BoxSpec) -> Value {
    let policy = spec.isolation.network_policy.clone();
    let policy = policy.unwrap_or_else(|| NetworkPolicy::unspecified(true));
    let login = json!({ "type": "kubernetes.io/dockerconfigjson", "data": { ".dockerconfigjson": "e30=" } });
    let logins: BTreeMap<String, Value> = pull_secret::owner_login(spec).into_iter().collect();
    json!([
        objects::namespace(config, spec, 7, &policy),
        objects::network_policy(config, &spec.id, Some(&spec.owner), &policy, &[]),
        objects::quota(config, &spec.id),
        objects::service_account(config, &spec.id),
        objects::secret(config, spec),
        objects::shared_pull_secret(config, &spec.id, "registry", &login),
        objects::pull_secret(config, &spec.id, &logins),
        objects::service(config, &spec.id),
        objects::endpoint(config, &spec.id),
        pod::pod(config, spec, !logins.is_empty()),
    ])
}

fn assert_snapshot(name: &str, objects: &Value) {
    insta::with_settings!({ sort_maps => true, omit_expression => true }, {
        insta::assert_json_snapshot!(name, objects);
    });
}

#[test]
fn default_box_renders_the_same_objects() {
    assert_snapshot("default_box", &objects(&config(), &spec(|_| {})));
}

#[test]
fn box_with_every_field_renders_the_same_objects() {
    let spec = spec(|spec| {
        "registry.example/team/app@sha256:0123".clone_into(&mut spec.image);
        spec.image_credential = Some(RegistryCredential {
            username: "ada".to_owned(),
            password: "secret".to_owned(),
        });
        spec.command = Some(["sh", "-c", "echo $(HOME)"].map(str::to_owned).to_vec());
        spec.env.insert("GREETING".to_owned(), "$(HOME)".to_owned());
        spec.labels.insert("team".to_owned(), "ci".to_owned());
        spec.node_selector
            .insert("region".to_owned(), "eu".to_owned());
        spec.node_selector
            .insert("disk".to_owned(), "ssd".to_owned());
        spec.tolerations = vec![Toleration {
            key: Some("gpu".to_owned()),
            operator: Some("Exists".to_owned()),
            value: None,
            effect: Some("NoExecute".to_owned()),
            toleration_seconds: Some(60),
        }];
        spec.isolation.runtime_class = Some("gvisor".to_owned());
        spec.isolation.security_context = Some(SecurityContext {
            run_as_user: Some(1000),
            run_as_group: Some(100),
            run_as_non_root: Some(true),
            read_only_root_filesystem: Some(true),
            allow_privilege_escalation: Some(true),
        });
        spec.isolation.network_policy = Some(NetworkPolicy {
            allow_internet: true,
            allowed_egress_cidrs: ["10.0.0.0/8", "203.0.113.7/32", "fd00::/8"]
                .map(|cidr| cidr.parse().unwrap())
                .to_vec(),
            allowed_ingress_ports: [80, 8080].map(|port| port.try_into().unwrap()).to_vec(),
            allow_cluster_internal: true,
        });
    });
    assert_snapshot("full_box", &objects(&config(), &spec));
}

#[test]
fn box_with_boxd_on_an_image_volume_and_own_resolvers_renders_the_same_objects() {
    let mut config = config();
    config.boxd_delivery = Delivery::ImageVolume;
    config.dns_servers = vec!["192.0.2.53".parse().unwrap()];
    config.shared_pull_secrets.clear();
    config.present_images = PresentImages::Kubelet;
    let spec = spec(|spec| {
        spec.isolation.network_policy = Some(NetworkPolicy {
            allow_internet: true,
            ..Default::default()
        });
    });
    assert_snapshot("image_volume_box", &objects(&config, &spec));
}

#[test]
fn closed_box_renders_the_same_policy() {
    let config = config();
    let spec = spec(|_| {});
    let policy = objects::network_policy(
        &config,
        &spec.id,
        Some(&spec.owner),
        &NetworkPolicy::default(),
        &[],
    );
    assert_snapshot("closed_policy", &policy);
}
