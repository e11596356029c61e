//! The objects of CoreDNS: in `kube-system`, behind the Service that the kubelet writes into the
//! `resolv.conf` of every Pod. Pure.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "coredns";
const CONFIGURATION: &str = "\
.:53 {
  errors
  ready
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    fallthrough in-addr.arpa ip6.arpa
    ttl 5
  }
  forward . /etc/resolv.conf
  cache 5
}
";

/// Each object with its path in the API.
pub(super) fn objects(image: &str, address: Ipv4Addr) -> Vec<(String, Value)> {
    let rbac = "rbac.authorization.k8s.io/v1";
    let labels = json!({ "k8s-app": "kube-dns" });
    let metadata = json!({ "name": NAME, "namespace": NAMESPACE, "labels": labels });
    let read = json!(["list", "watch"]);
    let named = |plural: &str| format!("/api/v1/namespaces/{NAMESPACE}/{plural}/{NAME}");
    vec![
        (
            named("serviceaccounts"),
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }),
        ),
        (
            format!("/apis/{rbac}/clusterroles/{NAME}"),
            json!({
                "apiVersion": rbac, "kind": "ClusterRole", "metadata": { "name": NAME },
                "rules": [
                    { "apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": read },
                    { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read },
                ],
            }),
        ),
        (
            format!("/apis/{rbac}/clusterrolebindings/{NAME}"),
            json!({
                "apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": { "name": NAME },
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME,
                },
                "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE }],
            }),
        ),
        (
            named("configmaps"),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
                "data": { "Corefile": CONFIGURATION },
            }),
        ),
        (
            format!("/api/v1/namespaces/{NAMESPACE}/services/kube-dns"),
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "name": "kube-dns", "namespace": NAMESPACE, "labels": labels },
                "spec": {
                    "clusterIP": address.to_string(), "selector": labels,
                    "ports": [
                        { "name": "dns", "port": 53, "protocol": "UDP" },
                        { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
                    ],
                },
            }),
        ),
        (
            format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}"),
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
                "spec": {
                    "selector": { "matchLabels": labels },
                    "template": { "metadata": { "labels": labels }, "spec": pod(image) },
                },
            }),
        ),
    ]
}

fn pod(image: &str) -> Value {
    json!({
        "serviceAccountName": NAME,
        // The node's resolvers, because the cluster's resolver is CoreDNS itself.
        "dnsPolicy": "Default",
        "containers": [{
            "name": NAME, "image": image, "imagePullPolicy": "Never",
            "args": ["-conf", "/etc/coredns/Corefile"],
            "ports": [
                { "name": "dns", "containerPort": 53, "protocol": "UDP" },
                { "name": "dns-tcp", "containerPort": 53, "protocol": "TCP" },
            ],
            "readinessProbe": { "httpGet": { "path": "/ready", "port": 8181 }, "periodSeconds": 1 },
            "volumeMounts": [{ "name": "configuration", "mountPath": "/etc/coredns" }],
        }],
        "volumes": [{ "name": "configuration", "configMap": { "name": NAME } }],
    })
}
