//! The rendered manifests, for several sets of values, before the installation.

use kube::Client;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NAMESPACE, RELEASE, SERVICES};
use crate::helm::{Helm, chart};

/// A kind's path in the API, and whether it is namespaced.
fn api_path(kind: &str) -> (&'static str, &'static str, bool) {
    match kind {
        "ConfigMap" => ("api/v1", "configmaps", true),
        "Secret" => ("api/v1", "secrets", true),
        "Service" => ("api/v1", "services", true),
        "ServiceAccount" => ("api/v1", "serviceaccounts", true),
        "Deployment" => ("apis/apps/v1", "deployments", true),
        "StatefulSet" => ("apis/apps/v1", "statefulsets", true),
        "NetworkPolicy" => ("apis/networking.k8s.io/v1", "networkpolicies", true),
        "Ingress" => ("apis/networking.k8s.io/v1", "ingresses", true),
        "PodDisruptionBudget" => ("apis/policy/v1", "poddisruptionbudgets", true),
        "HorizontalPodAutoscaler" => ("apis/autoscaling/v2", "horizontalpodautoscalers", true),
        "Role" => ("apis/rbac.authorization.k8s.io/v1", "roles", true),
        "RoleBinding" => ("apis/rbac.authorization.k8s.io/v1", "rolebindings", true),
        "ClusterRole" => ("apis/rbac.authorization.k8s.io/v1", "clusterroles", false),
        "ClusterRoleBinding" => (
            "apis/rbac.authorization.k8s.io/v1",
            "clusterrolebindings",
            false,
        ),
        "ValidatingAdmissionPolicy" => (
            "apis/admissionregistration.k8s.io/v1",
            "validatingadmissionpolicies",
            false,
        ),
        "ValidatingAdmissionPolicyBinding" => (
            "apis/admissionregistration.k8s.io/v1",
            "validatingadmissionpolicybindings",
            false,
        ),
        other => panic!("{other} is of a kind that the chart does not have"),
    }
}

/// Kinds of the Prometheus operator.
const OPERATOR_KINDS: [&str; 2] = ["PodMonitor", "PrometheusRule"];

fn is_of(document: &str, kind: &str) -> bool {
    document
        .lines()
        .any(|line| line.strip_prefix("kind: ") == Some(kind))
}

/// Checks that the API server accepts a document without changes or warnings: every field is
/// known, every value is valid, nothing is deprecated.
async fn assert_accepted(client: &Client, document: &str) -> String {
    let line = |start: &str| {
        let found = document.lines().find_map(|line| line.strip_prefix(start));
        found.unwrap_or_default().trim_matches('"').to_owned()
    };
    let (kind, name) = (line("kind: "), line("  name: "));
    let (root, plural, is_local) = api_path(&kind);
    let namespace = if is_local {
        format!("namespaces/{NAMESPACE}/")
    } else {
        String::new()
    };
    let request = http::Request::builder()
        .method("PATCH")
        .uri(format!(
            "/{root}/{namespace}{plural}/{name}?dryRun=All&fieldManager=helm&fieldValidation=Strict&force=true"
        ))
        .header("Content-Type", "application/apply-patch+yaml")
        .body(document.as_bytes().to_vec())
        .unwrap();
    let answer = client.request_text(request).await;
    assert!(answer.is_ok(), "{kind} {name}: {answer:?}\n{document}");
    kind
}

/// A digest of no image.
fn digest() -> String {
    format!("sha256:{}", "0a".repeat(32))
}

/// Values with every option switched on, and all external components.
fn all_options() -> Value {
    json!({
        "image": { "digest": digest() }, "boxdImage": { "digest": digest() },
        "defaults": {
            "autoscaling": { "enabled": true }, "env": { "AGENTBOX_LOG": "debug" },
            "podAnnotations": { "example.com/team": "boxes" },
            "nodeSelector": { "disk": "ssd" }, "priorityClassName": "high",
            "tolerations": [{ "key": "dedicated", "operator": "Exists" }],
            "affinity": { "podAntiAffinity": {} },
        },
        "services": {
            "apiGateway": { "existingSecret": "a" }, "auth": { "existingSecret": "b" },
            "scheduler": { "existingSecret": "c" },
            "execProxy": { "existingSecret": "d", "autoscaling": { "enabled": false }, "replicas": 5 },
            "webhooks": { "existingSecret": "f" }, "provisioner": { "existingSecret": "e" },
        },
        "pools": { "python": {
            "image": "python:3.11-slim", "min_ready": 2, "max_ready": 8,
            "resources": { "cpu": "500m", "memory": "512Mi", "storage": "1Gi" },
            "isolation": { "security_context": { "run_as_user": 1000 } },
        }},
        "eventConsumers": [{ "name": "billing", "from": [{ "podSelector": { "matchLabels": { "app": "billing" } } }] }],
        "nats": { "enabled": false, "url": "tls://nats.example:4222", "tlsSecret": "nats-ca" },
        "postgres": { "enabled": false, "tlsSecret": "postgres-ca" },
        "ingress": {
            "enabled": true, "className": "nginx", "host": "boxes.example", "tlsSecret": "tls",
            "annotations": { "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600" },
        },
        "service": { "type": "LoadBalancer", "annotations": { "example.com/lb": "internal" } },
        "telemetry": { "otlpEndpoint": "http://collector:4317" },
        "observability": {
            "dashboards": {
                "enabled": true, "labels": { "dashboards": "yes" }, "namespace": NAMESPACE,
                "annotations": { "grafana_folder": "AgentBox" },
            },
            "podMonitor": { "enabled": true, "labels": { "release": "prometheus" } },
            "rules": {
                "enabled": true, "labels": { "release": "prometheus" },
                "runbooks": "https://wiki.example/runbooks/",
            },
            "canary": { "enabled": true, "existingSecret": "canary" },
        },
        "networkPolicy": {
            "gatewayFrom": [{ "namespaceSelector": { "matchLabels": { "name": "ingress" } } }],
            "metricsFrom": [{ "namespaceSelector": { "matchLabels": { "name": "monitoring" } } }],
            "apiServer": { "to": [{ "ipBlock": { "cidr": "10.0.0.1/32" } }], "ports": [6443] },
            "extraEgress": [{ "ports": [{ "protocol": "TCP", "port": 4317 }] }],
        },
    })
}

async fn render(helm: &Helm, files: &[String]) -> String {
    let chart = chart().display().to_string();
    let mut words = vec!["template", RELEASE, &chart, "--namespace", NAMESPACE];
    for file in files {
        words.extend(["--values", file]);
    }
    helm.succeeds(&words).await
}

/// Checks what no set of values changes.
fn has_no_open_door(text: &str) {
    for port in ["containerPort: 8222", "http: 8222", ":8222"] {
        assert!(!text.contains(port), "NATS has a monitoring port: {port}");
    }
    let count = |name: &str| text.matches(name).count();
    let files = count("AGENTBOX_ADMIN_PASSWORD_FILE");
    assert_eq!(
        (files, count("AGENTBOX_ADMIN_PASSWORD")),
        (1, 1),
        "the administrator's password is in an environment"
    );
    // Each service verifies NATS, and those with a database Postgres.
    assert_eq!(count("name: AGENTBOX_NATS_TLS_CA"), SERVICES.len() + 1);
    assert_eq!(count("path: nats.crt"), SERVICES.len() + 1);
    assert_eq!(count("path: postgres.crt"), 3);
}

/// Runs the lint, the schema and a dry run of every object against the API server.
pub async fn are_valid(cluster: &Cluster) {
    let helm = &cluster.helm;
    let chart = chart().display().to_string();
    let own = helm.values("own.json", &cluster.values());
    let wide = helm.values("all_options.json", &all_options());
    for files in [vec![own.clone()], vec![own.clone(), wide.clone()]] {
        let mut words = vec!["lint", "--strict", &chart];
        for file in &files {
            words.extend(["--values", file]);
        }
        helm.succeeds(&words).await;
        let text = render(helm, &files).await;
        has_no_open_door(&text);
        let mut kinds = Vec::new();
        for document in text.split("\n---\n").filter(|d| d.contains("kind: ")) {
            // The cluster does not have the kinds of the Prometheus operator.
            match OPERATOR_KINDS.iter().find(|kind| is_of(document, kind)) {
                Some(kind) => kinds.push((*kind).to_owned()),
                None => kinds.push(assert_accepted(&cluster.client, document).await),
            }
        }
        assert!(kinds.len() > 25, "{kinds:?}");
        let has_all_options = files.len() > 1;
        // The services' image and boxd's.
        for image in ["agentbox", "agentbox-boxd"] {
            let pinned = format!("{image}@{}", digest());
            assert_eq!(text.contains(&pinned), has_all_options, "{pinned}");
        }
        assert_eq!(kinds.iter().any(|k| k == "StatefulSet"), !has_all_options);
        assert_eq!(kinds.iter().any(|k| k == "Secret"), !has_all_options);
        for kind in OPERATOR_KINDS {
            assert_eq!(kinds.iter().any(|k| k == kind), has_all_options, "{kind}");
        }
        // Off by default; the base of the runbooks is a value.
        for text_of_options in [
            "grafana_folder",
            "runbook_url: https://wiki.example/runbooks/create-errors\n",
            "agentbox-loadtest",
            "replacement: agentbox-$1",
            "\"max_ready\": 8",
            "\"run_as_user\": 1000",
        ] {
            assert_eq!(
                text.contains(text_of_options),
                has_all_options,
                "{text_of_options}"
            );
        }
        assert_eq!(
            kinds.iter().any(|k| k == "HorizontalPodAutoscaler"),
            has_all_options
        );
    }
    for (why, values) in [
        ("cidrs", json!({ "cluster": { "cidrs": [] } })),
        ("cidrs", json!({ "cluster": { "cidrs": ["10.0.0.0"] } })),
        (
            "replicaz",
            json!({ "services": { "auth": { "replicaz": 3 } } }),
        ),
        ("replicas", json!({ "defaults": { "replicas": 0 } })),
        (
            "settings",
            json!({ "cluster": { "settings": { "kubeconfig": "/x" } } }),
        ),
        (
            "max_ready",
            json!({ "pools": { "python": {
                "image": "busybox", "min_ready": 2,
                "resources": { "cpu": "1", "memory": "1Gi", "storage": "1Gi" },
            }}}),
        ),
        ("digest", json!({ "image": { "digest": "sha256:0a" } })),
        ("digest", json!({ "boxdImage": { "digest": "latest" } })),
        ("grace", json!({ "shutdown": { "grace": 5 } })),
        ("nats.url", json!({ "nats": { "enabled": false } })),
        (
            "existingSecret",
            json!({ "observability": { "canary": { "enabled": true } } }),
        ),
        (
            "deployment",
            json!({ "cluster": { "deployment": "Not a label" } }),
        ),
    ] {
        let file = helm.values("bad.json", &values);
        let words = [
            "template", RELEASE, &chart, "--values", &own, "--values", &file,
        ];
        let stderr = helm.refuses(&words).await;
        assert!(stderr.contains(why), "{why} is not in: {stderr}");
    }
}
