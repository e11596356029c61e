//! Finds the targets that a box reaches. The same probe in a plain Pod, which is no box, is the
//! control: it shows that the targets answer.

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

/// A target that is reached when its name resolves.
pub fn name(name: &str) -> String {
    format!("name,{name},0")
}

fn variables(targets: &Targets, timeout_s: &str) -> [(&'static str, String); 3] {
    let all: Vec<&str> = targets.iter().map(String::as_str).collect();
    [
        ("TARGETS", all.join(" ")),
        ("TIMEOUT", timeout_s.to_owned()),
        // One attempt of 2 s for a resolver that does not answer.
        ("RES_OPTIONS", "timeout:2 attempts:1".to_owned()),
    ]
}

/// Reads the output of `probe.py`; `None` when it is incomplete.
fn read(output: &str) -> Option<Targets> {
    let mut lines: Vec<&str> = output.lines().filter(|line| !line.is_empty()).collect();
    (lines.pop() == Some("done")).then(|| {
        let open = lines.iter().filter_map(|line| line.strip_prefix("open "));
        open.map(str::to_owned).collect()
    })
}

/// The spec of a box that probes the targets and exits.
pub fn probe_spec(
    s: &Subject<Driver>,
    policy: Option<NetworkPolicy>,
    targets: &Targets,
) -> BoxSpec {
    let mut spec = s.spec();
    IMAGE.clone_into(&mut spec.image);
    spec.command = Some(["python3", "-c", PROBE].map(str::to_owned).to_vec());
    let variables = variables(targets, "5");
    spec.env
        .extend(variables.map(|(key, value)| (key.to_owned(), value)));
    spec.isolation.network_policy = policy;
    spec
}

/// Runs a box of [`probe_spec`], and returns the targets that it reached.
pub async fn run_probe(s: &Subject<Driver>, spec: &BoxSpec) -> Result<Targets, Violation> {
    let end = s.run_to_end(spec).await?;
    check(end.exit_code == 0, || format!("{end:?}"))?;
    read(&end.output).ok_or_else(|| Violation(format!("{end:?}")))
}

pub async fn reached_from_box(
    s: &Subject<Driver>,
    policy: Option<NetworkPolicy>,
    targets: &Targets,
) -> Targets {
    run_probe(s, &probe_spec(s, policy, targets)).await.unwrap()
}

/// Starts a Pod that is no box, and returns its API path.
pub async fn start_plain_pod(
    kubectl: &Kubectl,
    namespace: &str,
    container: serde_json::Value,
) -> String {
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": "plain-pod-", "labels": { "app": "plain-pod" } },
        "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0, "containers": [container],
        },
    });
    let created = kubectl.post(&pods, &pod).await;
    format!(
        "{pods}/{}",
        created["metadata"]["name"].as_str().expect("a name")
    )
}

pub async fn reached_from_pod(namespace: &str, targets: &Targets) -> Targets {
    reached_from_pod_with(&kubectl().await, namespace, targets).await
}

pub async fn reached_from_pod_with(
    kubectl: &Kubectl,
    namespace: &str,
    targets: &Targets,
) -> Targets {
    // The timeout is long, because a target may have started only just now.
    let env = variables(targets, "15").map(|(name, value)| json!({ "name": name, "value": value }));
    let container = json!({
        "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", PROBE], "env": env,
    });
    let path = start_plain_pod(kubectl, namespace, container).await;
    eventually("the Pod has ended", || async {
        let phase = kubectl.get(&path).await["status"]["phase"].clone();
        check(phase != "Failed", || format!("{path} has failed"))?;
        Ok((phase == "Succeeded").then_some(()))
    })
    .await
    .unwrap();
    let log = kubectl.text(&format!("{path}/log")).await;
    kubectl.delete(&path).await;
    read(&log).unwrap_or_else(|| panic!("{path}: {log}"))
}
