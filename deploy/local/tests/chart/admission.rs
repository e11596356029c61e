//! The admission policies of a release, tested by requests with the scheduler's account: what RBAC
//! alone would allow is refused.

use kube::Client;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NAMESPACE, RELEASE};

/// A namespace of the test, with the label of the release's boxes.
const OURS: &str = "agentbox-admission-test";

/// The deployment's name by default.
fn deployment() -> String {
    format!("{NAMESPACE}-{RELEASE}")
}

/// Sends a request as the scheduler; returns the error's message. Without a `body` it deletes.
async fn ask(client: &Client, path: &str, body: Option<&Value>, is_dry: bool) -> Option<String> {
    let method = if body.is_some() { "PATCH" } else { "DELETE" };
    let dry = if is_dry { "&dryRun=All" } else { "" };
    // A deletion has no field manager.
    let query = match body {
        Some(_) => format!("?fieldManager=agentbox&force=true{dry}"),
        None => "?dryRun=All".to_owned(),
    };
    let body = body.map(|body| body.to_string().into_bytes());
    let request = http::Request::builder()
        .method(method)
        .uri(format!("/api/v1/{path}{query}"))
        .header("Content-Type", "application/apply-patch+yaml")
        .header(
            "Impersonate-User",
            format!("system:serviceaccount:{NAMESPACE}:{RELEASE}-scheduler"),
        )
        .body(body.unwrap_or_default())
        .unwrap();
    match client.request_text(request).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message.clone()),
        Err(error) => Some(error.to_string()),
    }
}

async fn is_accepted(client: &Client, path: &str, body: &Value, is_dry: bool) {
    let error = ask(client, path, Some(body), is_dry).await;
    assert_eq!(error, None, "{path}");
}

/// Tries a request without carrying it out: a policy must refuse it for this reason.
async fn is_refused(client: &Client, path: &str, body: Option<&Value>, reason: &str) {
    let error = ask(client, path, body, true).await.unwrap_or_default();
    let is_denied = error.contains("ValidatingAdmissionPolicy") && error.contains(reason);
    assert!(is_denied, "{path}: {reason} is not in: {error}");
}

fn object(kind: &str, name: &str, labels: &Value, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": kind,
        "metadata": { "name": name, "labels": labels },
    });
    if !spec.is_null() {
        object["spec"] = spec.clone();
    }
    object
}

/// The Pod `main`, with `change` applied to its spec.
fn pod(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({
        "serviceAccountName": "box", "automountServiceAccountToken": false,
        "containers": [{ "name": "main", "image": "busybox" }],
    });
    change(&mut spec);
    let labels = json!({ "agentbox.dev/deployment": deployment() });
    object("Pod", "main", &labels, &spec)
}

/// The scheduler changes only its deployment's objects, in its deployment's namespaces, and makes
/// only Pods without access to their node.
pub async fn scheduler_is_bound_to_boxes(cluster: &Cluster) {
    let client = &cluster.client;
    let labels = json!({ "agentbox.dev/deployment": deployment() });
    let none = Value::Null;
    // The controls: a box's own objects.
    let namespace = object("Namespace", OURS, &labels, &none);
    is_accepted(client, &format!("namespaces/{OURS}"), &namespace, false).await;
    let account = object("ServiceAccount", "box", &labels, &none);
    let at = format!("namespaces/{OURS}/serviceaccounts/box");
    is_accepted(client, &at, &account, false).await;
    let main = format!("namespaces/{OURS}/pods/main");
    is_accepted(client, &main, &pod(|_| {}), true).await;

    namespaces_of_others_are_refused(client, &labels).await;
    services_of_others_are_refused(client, &labels).await;
    type Change = fn(&mut Value);
    let table: [(Change, &str); 17] = [
        (|spec| spec["hostNetwork"] = json!(true), "hostNetwork"),
        (|spec| spec["hostPID"] = json!(true), "hostPID"),
        (|spec| spec["nodeName"] = json!("node"), "nodeName"),
        (
            |spec| spec["schedulerName"] = json!("another"),
            "schedulerName",
        ),
        (
            |spec| spec["priorityClassName"] = json!("system-node-critical"),
            "priorityClassName",
        ),
        (
            |spec| spec["serviceAccountName"] = json!("default"),
            "serviceAccountName",
        ),
        (
            |spec| spec["automountServiceAccountToken"] = json!(true),
            "automountServiceAccountToken",
        ),
        (
            |spec| {
                let alias = json!({ "ip": "203.0.113.1", "hostnames": ["registry.example"] });
                spec["hostAliases"] = json!([alias]);
            },
            "hostAliases",
        ),
        (
            |spec| {
                let profile = json!({ "type": "Unconfined" });
                spec["securityContext"] = json!({ "seccompProfile": profile });
            },
            "seccompProfile",
        ),
        (
            |spec| {
                let sysctl = json!({ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" });
                spec["securityContext"] = json!({ "sysctls": [sysctl] });
            },
            "sysctls",
        ),
        (
            |spec| spec["volumes"] = json!([{ "name": "s", "secret": { "secretName": "boxd" } }]),
            "volume",
        ),
        (
            |spec| {
                let limits = json!({ "example.com/device": "1" });
                spec["containers"][0]["resources"] = json!({ "limits": limits });
            },
            "resource",
        ),
        (
            |spec| {
                let target = json!({ "host": "169.254.169.254", "port": 80 });
                spec["containers"][0]["livenessProbe"] = json!({ "httpGet": target });
            },
            "probe",
        ),
        (
            |spec| spec["volumes"] = json!([{ "name": "host", "hostPath": { "path": "/" } }]),
            "volume",
        ),
        (
            |spec| spec["containers"][0]["securityContext"] = json!({ "privileged": true }),
            "privileged",
        ),
        (
            |spec| {
                spec["containers"][0]["securityContext"] =
                    json!({ "capabilities": { "add": ["SYS_ADMIN"] } });
            },
            "capability",
        ),
        (
            |spec| {
                spec["initContainers"] = json!([{
                    "name": "first", "image": "busybox",
                    "ports": [{ "containerPort": 80, "hostPort": 80 }],
                }]);
            },
            "hostPort",
        ),
    ];
    for (change, reason) in table {
        is_refused(client, &main, Some(&pod(change)), reason).await;
    }
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> =
        kube::Api::all(client.clone());
    namespaces.delete(OURS, &Default::default()).await.unwrap();
}

async fn namespaces_of_others_are_refused(client: &Client, labels: &Value) {
    const RULE: &str = "agentbox.dev/deployment";
    let none = Value::Null;
    let unlabelled = object("Namespace", "stray", &json!({}), &none);
    is_refused(client, "namespaces/stray", Some(&unlabelled), RULE).await;
    let ours = object("Namespace", "default", labels, &none);
    is_refused(client, "namespaces/default", Some(&ours), RULE).await;
    is_refused(client, &format!("namespaces/{NAMESPACE}"), None, RULE).await;
    let main = "namespaces/default/pods/main";
    let elsewhere = pod(|spec| {
        spec["serviceAccountName"] = json!("default");
    });
    // By the rule above, or because of the ServiceAccount.
    is_refused(client, main, Some(&elsewhere), "").await;
    let secret = object("Secret", "boxd", labels, &none);
    let at = format!("namespaces/{NAMESPACE}/secrets/boxd");
    is_refused(client, &at, Some(&secret), RULE).await;
}

async fn services_of_others_are_refused(client: &Client, labels: &Value) {
    let nats = format!("namespaces/{NAMESPACE}/services/{RELEASE}-nats");
    is_refused(client, &nats, None, "agentbox.dev/deployment").await;
    let open = json!({ "ports": [{ "port": 80 }], "externalIPs": ["203.0.113.1"] });
    let service = object("Service", "main", labels, &open);
    let at = format!("namespaces/{OURS}/services/main");
    is_refused(client, &at, Some(&service), "Service").await;
    let external = json!({ "type": "ExternalName", "externalName": "main.example" });
    let endpoint = object("Service", "env-test", labels, &external);
    let at = format!("namespaces/{NAMESPACE}/services/env-test");
    is_accepted(client, &at, &endpoint, true).await;
}
