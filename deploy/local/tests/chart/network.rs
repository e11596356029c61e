//! What Pods reach over the network of a release, tested by traffic: its policies, and the events that a
//! consumer reads.

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::{Value, json};

use crate::cluster::{Cluster, EVENT_CONSUMER, NAMESPACE, RELEASE, apply};
use crate::load::Client;

/// The program that an event consumer runs, on Python's standard library.
const CONSUMER_PROGRAM: &str = include_str!("consumer.py");

/// Runs `script` in a new Pod with `labels`; the script must succeed.
async fn run_in_pod(cluster: &Cluster, namespace: &str, name: &str, labels: Value, script: &str) {
    let container = json!({ "image": "busybox", "command": ["sh", "-uxc", script] });
    run_container(cluster, namespace, name, labels, container).await;
}

/// Runs a container in a new Pod with `labels`; it must end with success.
async fn run_container(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    labels: Value,
    mut container: Value,
) {
    container["name"] = json!("main");
    container["imagePullPolicy"] = json!("IfNotPresent");
    container["securityContext"] = json!({
        "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
    });
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65534,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [container],
        },
    });
    apply(&pods, name, &pod).await;
    let phase = async || {
        let pod = pods.get(name).await.unwrap();
        pod.status.unwrap().phase.unwrap_or_default()
    };
    cluster
        .wait_until(&format!("the Pod {name} has ended"), async || {
            matches!(phase().await.as_str(), "Succeeded" | "Failed")
        })
        .await;
    let log = pods.logs(name, &Default::default()).await.unwrap();
    assert_eq!(phase().await, "Succeeded", "{namespace}/{name}:\n{log}");
    pods.delete(name, &Default::default()).await.unwrap();
}

/// Every Pod has access to the API, and only the services to stores, metrics and other ports. A store
/// takes encrypted connections only.
pub async fn policies_are_enforced(cluster: &Cluster) {
    let host = |component: &str| format!("{RELEASE}{component}.{NAMESPACE}.svc.cluster.local");
    let (api, nats, postgres) = (host(""), host("-nats"), host("-postgres"));
    let gateway: Api<Pod> = cluster.api();
    let name = &cluster.pods("api-gateway").await[0];
    let gateway = gateway.get(name).await.unwrap();
    let gateway = gateway.status.unwrap().pod_ip.unwrap();
    // A closed port refuses a connection, and a policy drops its packets: neither connects.
    let closed = format!(
        "for at in '{nats} 4222' '{postgres} 5432' '{gateway} 9090'; do
           if echo | timeout 4 nc $at; then echo \"$at is open\"; exit 1; fi
         done"
    );
    let open = format!("timeout 10 wget -qO- http://{api}/api/v1/health/live");
    let script = format!("{open} && {closed}");
    run_in_pod(cluster, "default", "stranger", json!({}), &script).await;
    // In the namespace of the release, without its labels.
    run_in_pod(cluster, NAMESPACE, "stranger", json!({}), &script).await;
    // The control: the same test succeeds in a Pod with access.
    let labels = json!({
        "app.kubernetes.io/name": "agentbox", "app.kubernetes.io/instance": RELEASE,
        "app.kubernetes.io/component": "scheduler",
    });
    // Both servers refuse a login that is not encrypted. The second request is Postgres' startup
    // message: its length, the version 3.0, and names with their values.
    let startup = r"\000\000\000\045\000\003\000\000user\000auth\000database\000agentbox\000\000";
    let script = format!(
        "timeout 10 nc {nats} 4222 < /dev/null | grep '\"tls_required\":true' &&
           {{ printf '{startup}'; sleep 3; }} | timeout 10 nc {postgres} 5432 |
           tr -d '\\000' | grep -q 'no encryption'"
    );
    run_in_pod(cluster, NAMESPACE, "friend", labels, &script).await;
}

/// The program of an event consumer reads an environment's event with the Secret that the chart made, also
/// after a new connection, and NATS refuses it everything else.
pub async fn event_consumer_reads_events_and_nothing_else(cluster: &Cluster, client: &Client) {
    let id = client.create("read", json!({})).await.unwrap();
    client.wait_for_status(&id, &["running"]).await.unwrap();
    let secret = |name: String, key: &str| json!({ "secretKeyRef": { "name": name, "key": key } });
    let password = secret(
        format!("{RELEASE}-events-{EVENT_CONSUMER}"),
        "nats-password",
    );
    let authority = secret(format!("{RELEASE}-nats-tls"), "ca.crt");
    let container = json!({
        "image": "python:3.11-slim", "command": ["python3", "-c", CONSUMER_PROGRAM],
        "env": [
            { "name": "NATS_HOST", "value": format!("{RELEASE}-nats") },
            { "name": "NATS_USER", "value": EVENT_CONSUMER },
            { "name": "NATS_PASSWORD", "valueFrom": password },
            { "name": "NATS_CA", "valueFrom": authority },
            { "name": "ENVIRONMENT", "value": id },
        ],
    });
    let labels = json!({ "app": EVENT_CONSUMER });
    run_container(cluster, NAMESPACE, EVENT_CONSUMER, labels, container).await;
    client.delete(&id).await.unwrap();
    client.wait_for_status(&id, &["terminated"]).await.unwrap();
}
