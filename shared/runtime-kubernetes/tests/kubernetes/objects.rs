//! The objects of a box, and foreign objects that stay unchanged.

use std::time::{Duration, Instant};

use agentbox_runtime::conformance::{self, Subject};
use agentbox_runtime::{BoxPhase, BoxSpec, ExitReason, FailureReason, Runtime, RuntimeError};
use agentbox_runtime_kubernetes::Driver;
use serde_json::{Value, json};

use crate::cluster::{Kubectl, config, kubectl, subject};

fn namespace_of(spec: &BoxSpec) -> String {
    format!("/api/v1/namespaces/agentbox-{}", spec.id)
}

/// Reads the object until the condition holds.
async fn eventually(expected: &str, kubectl: &Kubectl, path: &str, holds: impl Fn(&Value) -> bool) {
    let begun = Instant::now();
    loop {
        let seen = kubectl.get(path).await;
        if holds(&seen) {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{expected}: {path} is {seen}"
        );
        tokio::time::sleep(agentbox_testing::pause(begun.elapsed())).await;
    }
}

#[tokio::test]
async fn box_has_no_cluster_token_and_a_named_endpoint() {
    let (subject, kubectl) = (subject().await, kubectl().await);
    let spec = subject.spec();
    subject.run(&spec).await.unwrap();
    let at = namespace_of(&spec);
    let namespace = kubectl.get(&at).await;
    let labels = &namespace["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "baseline");
    let pod = kubectl.get(&format!("{at}/pods/main")).await;
    assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
    let mounts = &pod["spec"]["containers"][0]["volumeMounts"];
    assert!(!mounts.to_string().contains("serviceaccount"), "{mounts}");
    let policy = format!(
        "/apis/networking.k8s.io/v1/namespaces/agentbox-{}/networkpolicies/main",
        spec.id
    );
    let made_at = |object: &Value| object["metadata"]["creationTimestamp"].clone();
    let policy = kubectl.get(&policy).await;
    assert!(made_at(&policy).as_str() <= made_at(&pod).as_str());
    let service = format!("/api/v1/namespaces/agentbox-system/services/{}", spec.id);
    let endpoint = kubectl.get(&service).await;
    assert_eq!(
        endpoint["spec"]["externalName"],
        format!("main.agentbox-{}.svc.cluster.local", spec.id)
    );
    subject.clean().await.unwrap();
    assert_eq!(kubectl.get(&service).await["code"], 404);
    eventually("the namespace is gone", &kubectl, &at, |seen| {
        seen["code"] == 404
    })
    .await;
}

#[tokio::test]
async fn foreign_namespace_is_left_unchanged() {
    let (subject, kubectl) = (subject().await, kubectl().await);
    let spec = subject.spec();
    let foreign = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": format!("agentbox-{}", spec.id) },
    });
    kubectl.post("/api/v1/namespaces", &foreign).await;
    let refused = subject.first.ensure(&spec, 1).await;
    assert!(
        matches!(refused, Err(RuntimeError::Cluster { .. })),
        "{refused:?}"
    );
    assert_eq!(subject.first.get(&spec.id).await.unwrap(), None);
    subject.first.remove(&spec.id).await.unwrap();
    let at = namespace_of(&spec);
    let left = kubectl.get(&at).await;
    assert!(left["metadata"]["deletionTimestamp"].is_null(), "{left}");
    kubectl.delete(&at).await;
}

#[tokio::test]
async fn stuck_namespace_does_not_block_other_boxes() {
    let (subject, kubectl) = (subject().await, kubectl().await);
    let stuck = subject.spec();
    subject.run(&stuck).await.unwrap();
    let at = namespace_of(&stuck);
    let held = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "held", "finalizers": ["example.com/never"] },
    });
    kubectl.post(&format!("{at}/configmaps"), &held).await;
    subject.first.remove(&stuck.id).await.unwrap();
    assert_eq!(subject.second.get(&stuck.id).await.unwrap(), None);
    // The control: the namespace still exists.
    eventually(
        "the stuck namespace names its finalizer",
        &kubectl,
        &at,
        |seen| {
            seen["status"]["phase"] == "Terminating"
                && seen.to_string().contains("example.com/never")
        },
    )
    .await;
    let spec = subject.spec();
    subject.run(&spec).await.unwrap();
    subject.first.remove(&spec.id).await.unwrap();
    eventually(
        "the namespace of another box is gone",
        &kubectl,
        &namespace_of(&spec),
        |seen| seen["code"] == 404,
    )
    .await;
    let listed = subject.second.list().await.unwrap();
    let ours = [&stuck.id, &spec.id];
    assert!(
        !listed.iter().any(|seen| ours.contains(&&seen.id)),
        "{listed:?}"
    );
    subject.first.remove(&stuck.id).await.unwrap();
    let freed = json!({ "metadata": { "finalizers": null } });
    kubectl
        .patch(&format!("{at}/configmaps/held"), &freed)
        .await;
    eventually("the freed namespace is gone", &kubectl, &at, |seen| {
        seen["code"] == 404
    })
    .await;
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn box_with_deleted_pod_has_exited_and_is_not_recreated() {
    let (subject, kubectl) = (subject().await, kubectl().await);
    let spec = subject.spec();
    subject.run(&spec).await.unwrap();
    let pod = format!("{}/pods/main", namespace_of(&spec));
    kubectl.delete(&pod).await;
    eventually("the Pod is gone", &kubectl, &pod, |seen| {
        seen["code"] == 404
    })
    .await;
    let again = subject.second.ensure(&spec, 2).await.unwrap();
    let lost = matches!(
        again.phase,
        BoxPhase::Exited {
            reason: ExitReason::NodeLost,
            ..
        }
    );
    assert!(lost, "{again:?}");
    assert_eq!(kubectl.get(&pod).await["code"], 404);
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn unschedulable_box_reports_why_and_fails_after_the_deadline() {
    let mut patient = config().await;
    patient.start_deadline_s = 1;
    let mut impatient = patient.clone();
    impatient.unschedulable_deadline_s = 0;
    let driver = |config| Driver::connect(config).unwrap();
    let subject = Subject::new(driver(patient), driver(impatient), "busybox");
    let mut spec = subject.spec();
    spec.node_selector
        .insert("disk".to_owned(), "none-has-it".to_owned());
    conformance::eventually("the scheduler names the nodes", || async {
        let phase = subject.first.ensure(&spec, 1).await?.phase;
        let names_nodes =
            matches!(&phase, BoxPhase::Starting { message } if message.contains("0/1 nodes"));
        Ok(names_nodes.then_some(()))
    })
    .await
    .unwrap();
    let phase = subject.second.ensure(&spec, 1).await.unwrap().phase;
    let failed = matches!(
        phase,
        BoxPhase::Failed {
            reason: FailureReason::Unschedulable,
            ..
        }
    );
    assert!(failed, "{phase:?}");
    subject.clean().await.unwrap();
}

/// Creates the namespace of a box with a quota before the box, as an operator's webhook could.
async fn create_with_quota(kubectl: &Kubectl, spec: &BoxSpec, hard: &Value) {
    let namespace = format!("agentbox-{}", spec.id);
    let manifest = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": namespace,
            "labels": {
                "agentbox.dev/deployment": config().await.deployment,
                "agentbox.dev/box": spec.id.to_string(),
            },
            "annotations": { "agentbox.dev/generation": "1" },
        },
    });
    kubectl.post("/api/v1/namespaces", &manifest).await;
    let quotas = format!("{}/resourcequotas", namespace_of(spec));
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": { "name": "operators" },
        "spec": { "hard": hard },
    });
    kubectl.post(&quotas, &quota).await;
    let at = format!("{quotas}/operators");
    eventually("the quota is enforced", kubectl, &at, |seen| {
        seen["status"]["hard"].is_object()
    })
    .await;
}

#[tokio::test]
async fn box_over_namespace_quota_fails_with_the_quota_name() {
    let (subject, kubectl) = (subject().await, kubectl().await);
    let spec = subject.spec();
    create_with_quota(&kubectl, &spec, &json!({ "limits.memory": "1Mi" })).await;
    let phase = subject.start(&spec).await.unwrap().phase;
    let failed = matches!(
        &phase,
        BoxPhase::Failed { reason: FailureReason::Quota, message } if message.contains("operators")
    );
    assert!(failed, "{phase:?}");
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn box_starts_when_another_pod_no_longer_uses_up_the_quota() {
    let (subject, kubectl) = (subject().await, kubectl().await);
    let spec = subject.spec();
    let at = namespace_of(&spec);
    create_with_quota(&kubectl, &spec, &json!({ "limits.memory": "100Mi" })).await;
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "other" },
    });
    kubectl
        .post(&format!("{at}/serviceaccounts"), &account)
        .await;
    // It fits on no node, and counts.
    let other = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "other" },
        "spec": {
            "serviceAccountName": "other",
            "automountServiceAccountToken": false,
            "nodeSelector": { "disk": "none-has-it" },
            "containers": [{
                "name": "other", "image": "busybox",
                "resources": { "limits": { "memory": "80Mi" } },
            }],
        },
    });
    kubectl.post(&format!("{at}/pods"), &other).await;
    // The refusal of the first attempt must not end the box.
    let refused = tokio::time::timeout(Duration::from_secs(3), subject.first.ensure(&spec, 1));
    let refused = refused.await;
    assert!(refused.is_err(), "{refused:?}");
    kubectl.delete(&format!("{at}/pods/other")).await;
    let phase = subject.start(&spec).await.unwrap().phase;
    assert!(matches!(phase, BoxPhase::Running { .. }), "{phase:?}");
    subject.clean().await.unwrap();
}
