//! Destinations that no policy opens: the node, the machine of the tests, the cluster's Services
//! and Pods, the metadata address.

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::conformance::eventually;
use agentbox_runtime_kubernetes::Config;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::hosts::{ANY, Listener, METADATA, NetworkNamespace, remote_machine};
use super::probe::{Targets, reached_from_box, reached_from_pod, start_plain_pod, tcp, udp};
use super::{NODE_OVER_IPV6, api, cidrs, cluster_address, machine, node, wide_open};
use crate::cluster::{Kubectl, config, kubectl, kubernetes, subject, subject_with};

const NAMESPACE: &str = "default";
/// The address of a load balancer. kube-proxy redirects its packets on every node.
const LOAD_BALANCER: &str = "198.51.100.99";

/// Starts a Pod with a server, and a Service for it. Returns every target that leads to the server,
/// and the API paths of both objects.
async fn start_service(kubectl: &Kubectl) -> (Targets, [String; 2]) {
    let container = json!({
        "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["httpd", "-f", "-p", "8080", "-h", "/tmp"],
        "ports": [{ "containerPort": 8080, "hostPort": 18_080 }],
    });
    let pod = start_plain_pod(kubectl, NAMESPACE, container).await;
    let address = eventually("the Pod has an address", || async {
        let address = kubectl.get(&pod).await["status"]["podIP"].clone();
        Ok(address.as_str().map(str::to_owned))
    });
    let address = address.await.unwrap();
    let services = format!("/api/v1/namespaces/{NAMESPACE}/services");
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "generateName": "plain-pod-" },
        "spec": {
            "type": "NodePort", "externalIPs": [LOAD_BALANCER],
            "selector": { "app": "plain-pod" },
            "ports": [{ "port": 80, "targetPort": 8080 }],
        },
    });
    let created = kubectl.post(&services, &service).await;
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let port = created["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .expect("a port");
    let node = node(&config().await);
    let targets = [
        tcp(address, 8080),
        tcp(text(&created["spec"]["clusterIP"]), 80),
        tcp(LOAD_BALANCER, 80),
        tcp(node, u16::try_from(port).expect("a port")),
        tcp(node, 18_080),
    ];
    let service = format!("{services}/{}", text(&created["metadata"]["name"]));
    (targets.into(), [pod, service])
}

#[tokio::test]
async fn cluster_node_machine_and_metadata_are_closed_under_every_policy() {
    let (config, subject, kubectl) = (config().await, subject().await, kubectl().await);
    let (node, machine) = (node(&config), machine(&config));
    let on_node = Listener::on(&NetworkNamespace::of_node(kubernetes().await), ANY, 0);
    let on_machine = Listener::on(&NetworkNamespace::of_test_machine(), ANY, 0);
    let metadata = Listener::on(remote_machine().await, METADATA, 0);
    let (mut targets, objects) = start_service(&kubectl).await;
    targets.extend([
        tcp(node, 10_250),
        tcp(node, 6_443),
        tcp(api(&config), 443),
        tcp(node, on_node.port),
        udp(node, on_node.port),
        tcp(NODE_OVER_IPV6, on_node.port),
        udp(NODE_OVER_IPV6, on_node.port),
        tcp(machine, on_machine.port),
        udp(machine, on_machine.port),
        tcp(METADATA, metadata.port),
        udp(METADATA, metadata.port),
    ]);
    assert_eq!(reached_from_pod(NAMESPACE, &targets).await, targets);
    let before = (on_node.received(), on_machine.received());
    let policies = [None, Some(NetworkPolicy::default()), Some(wide_open())];
    let (s, all) = (&subject, &targets);
    let probes = policies.map(|policy| async move {
        let reached = reached_from_box(s, policy.clone(), all).await;
        assert_eq!(reached, Targets::new(), "{policy:?}");
    });
    futures::future::join_all(probes).await;
    // No packet arrived, whether it was answered or not.
    assert_eq!((on_node.received(), on_machine.received()), before);
    subject.clean().await.unwrap();
    for object in objects {
        kubectl.delete(&object).await;
    }
}

/// The configuration without the network of the nodes and the machine: Pods only.
fn without_nodes(config: &Config) -> Config {
    let pods: IpNet = format!("{}/21", cluster_address(config, 2048))
        .parse()
        .unwrap();
    Config {
        cluster_cidrs: vec![
            IpNet::new(cluster_address(config, 0).into(), 32).unwrap(),
            pods,
        ],
        ..config.clone()
    }
}

#[tokio::test]
async fn node_is_closed_if_policy_lists_it_and_config_does_not() {
    let config = without_nodes(&config().await);
    let on_node = Listener::on(&NetworkNamespace::of_node(kubernetes().await), ANY, 0);
    let targets = Targets::from([tcp(node(&config), on_node.port)]);
    assert_eq!(reached_from_pod(NAMESPACE, &targets).await, targets);
    let subject = subject_with(&config);
    for policy in [cidrs(&[&format!("{}/32", node(&config))]), wide_open()] {
        let reached = reached_from_box(&subject, Some(policy.clone()), &targets).await;
        assert_eq!(reached, Targets::new(), "{policy:?}");
    }
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn machine_is_open_only_if_policy_lists_it_and_config_does_not() {
    let config = config().await;
    let listener = Listener::on(&NetworkNamespace::of_test_machine(), ANY, 0);
    let target = Targets::from([tcp(machine(&config), listener.port)]);
    let policy = cidrs(&[&format!("{}/32", machine(&config))]);
    let closed = subject_with(&config);
    assert_eq!(
        reached_from_box(&closed, Some(policy.clone()), &target).await,
        Targets::new()
    );
    let open = subject_with(&without_nodes(&config));
    assert_eq!(reached_from_box(&open, None, &target).await, Targets::new());
    assert_eq!(reached_from_box(&open, Some(policy), &target).await, target);
    closed.clean().await.unwrap();
    open.clean().await.unwrap();
}
