//! Which targets answer: asked from a box, or from a Pod that is none, which shows that they
//! do answer.

use std::collections::BTreeSet;
use std::fmt::Display;

use agentbox_runtime::conformance::{Subject, Violation, check, eventually};
use agentbox_runtime::{BoxSpec, NetworkPolicy};
use agentbox_runtime_kubernetes::Driver;
use serde_json::json;

use crate::cluster::{Kubectl, kubectl};

const PROBE: &str = include_str!("probe.py");
const IMAGE: &str = "python:3.11-slim";

pub type Targets = BTreeSet<String>;

pub fn tcp(host: impl Display, port: u16) -> String {
    format!("tcp,{host},{port}")
}

pub fn udp(host: impl Display, port: u16) -> String {
    format!("udp,{host},{port}")
}

/// A name that is to be resolved.
pub fn name(name: &str) -> String {
    format!("name,{name},0")
}

fn variables(targets: &Targets, patience: &str) -> [(&'static str, String); 3] {
    let all: Vec<&str> = targets.iter().map(String::as_str).collect();
    [
        ("TARGETS", all.join(" ")),
        ("PATIENCE", patience.to_owned()),
        // A resolver that does not answer is given up soon.
        ("RES_OPTIONS", "timeout:2 attempts:1".to_owned()),
    ]
}

fn read(output: &str) -> Option<Targets> {
    let mut lines: Vec<&str> = output.lines().filter(|line| !line.is_empty()).collect();
    (lines.pop() == Some("done")).then(|| {
        let open = lines.iter().filter_map(|line| line.strip_prefix("open "));
        open.map(str::to_owned).collect()
    })
}

/// A box that tries them and ends.
pub fn probing(s: &Subject<Driver>, policy: Option<NetworkPolicy>, targets: &Targets) -> BoxSpec {
    let mut spec = s.spec();
    IMAGE.clone_into(&mut spec.image);
    spec.command = Some(["python3", "-c", PROBE].map(str::to_owned).to_vec());
    let variables = variables(targets, "5");
    spec.env
        .extend(variables.map(|(key, value)| (key.to_owned(), value)));
    spec.isolation.network_policy = policy;
    spec
}

/// What such a box reaches.
pub async fn reached(s: &Subject<Driver>, spec: &BoxSpec) -> Result<Targets, Violation> {
    let end = s.run_to_end(spec).await?;
    check(end.exit_code == 0, || format!("{end:?}"))?;
    read(&end.output).ok_or_else(|| Violation(format!("{end:?}")))
}

pub async fn from_box(
    s: &Subject<Driver>,
    policy: Option<NetworkPolicy>,
    targets: &Targets,
) -> Targets {
    reached(s, &probing(s, policy, targets)).await.unwrap()
}

/// Starts a Pod of nobody's in a namespace; its place in the API.
pub async fn start_pod(kubectl: &Kubectl, namespace: &str, container: serde_json::Value) -> String {
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": "stranger-", "labels": { "app": "stranger" } },
        "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0, "containers": [container],
        },
    });
    let made = kubectl.post(&pods, &pod).await;
    format!(
        "{pods}/{}",
        made["metadata"]["name"].as_str().expect("a name")
    )
}

pub async fn from_pod(namespace: &str, targets: &Targets) -> Targets {
    from_pod_of(&kubectl().await, namespace, targets).await
}

pub async fn from_pod_of(kubectl: &Kubectl, namespace: &str, targets: &Targets) -> Targets {
    // What it asks may have begun only just now.
    let env = variables(targets, "15").map(|(name, value)| json!({ "name": name, "value": value }));
    let container = json!({
        "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", PROBE], "env": env,
    });
    let at = start_pod(kubectl, namespace, container).await;
    eventually("the Pod has ended", || async {
        let phase = kubectl.get(&at).await["status"]["phase"].clone();
        check(phase != "Failed", || format!("{at} has failed"))?;
        Ok((phase == "Succeeded").then_some(()))
    })
    .await
    .unwrap();
    let said = kubectl.text(&format!("{at}/log")).await;
    kubectl.delete(&at).await;
    read(&said).unwrap_or_else(|| panic!("{at}: {said}"))
}
