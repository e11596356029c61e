//! A changed policy applies to a running box, and a deleted one is restored.

use std::cell::Cell;
use std::time::{Duration, Instant};

use agentbox_runtime::conformance::{Subject, eventually};
use agentbox_runtime::{BoxConnector as _, BoxSpec, ChangeStream, NetworkPolicy, Runtime as _};
use agentbox_runtime_kubernetes::Driver;
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::hosts::{Listener, PUBLIC, remote_machine};
use super::{cidrs, cluster_address, internet};
use crate::cluster::{Kubectl, config, kubectl, subject, subject_with};

/// Connects repeatedly, and prints each outcome.
const WATCH: &str = "n=0; while :; do n=$((n+1)); \
                     if timeout 4 nc -w 1 $HOST $PORT < /dev/null 2> /dev/null; then echo $n open; \
                     else echo $n closed; fi; sleep 0.1; done";

/// The number and the outcome of the last attempt.
async fn last_attempt(s: &Subject<Driver>, spec: &BoxSpec) -> (u64, String) {
    let lines = s.first.last_output(&spec.id, 1_000).await.unwrap();
    let line = lines
        .last()
        .map(|entry| String::from_utf8_lossy(&entry.line).into_owned());
    let line = line.unwrap_or_default();
    let (number, outcome) = line.split_once(' ').unwrap_or_default();
    (number.parse().unwrap_or(0), outcome.to_owned())
}

/// Waits until an attempt has this outcome, and the next one too.
async fn wait_for_outcome(s: &Subject<Driver>, spec: &BoxSpec, outcome: &str) {
    let first = Cell::new(None);
    let observed = eventually(outcome, || async {
        let (last, last_outcome) = last_attempt(s, spec).await;
        if last_outcome != outcome {
            return Ok(None);
        }
        // The next attempt may have started before the change, so the one after it must agree.
        let from = first.get().unwrap_or(last) + 1;
        first.set(first.get().or(Some(last)));
        Ok((last > from).then_some(()))
    });
    if let Err(violation) = observed.await {
        panic!("{violation}; last: {:?}", last_attempt(s, spec).await);
    }
}

/// The API path of a box's policy.
fn policy_of(spec: &BoxSpec) -> String {
    let namespace = format!("/apis/networking.k8s.io/v1/namespaces/agentbox-{}", spec.id);
    format!("{namespace}/networkpolicies/main")
}

#[tokio::test]
async fn changed_policy_applies_to_a_running_box() {
    let (s, kubectl) = (subject().await, kubectl().await);
    let listener = Listener::on(remote_machine().await, PUBLIC, 0);
    let [open, closed] = [Some(internet()), Some(NetworkPolicy::default())].map(|policy| {
        let mut spec = s.script(WATCH);
        spec.env.insert("HOST".to_owned(), PUBLIC.to_owned());
        spec.env
            .insert("PORT".to_owned(), listener.port.to_string());
        spec.isolation.network_policy = policy;
        spec
    });
    let (one, other) = futures::join!(s.run(&open), s.run(&closed));
    one.and(other).unwrap();
    let rules = |spec: &BoxSpec| {
        let (kubectl, path) = (&kubectl, policy_of(spec));
        // Missing rules are null, and a merge patch with null removes the rules.
        async move { json!({ "spec": { "egress": kubectl.get(&path).await["spec"]["egress"] } }) }
    };
    let (opening, closing) = (rules(&open).await, rules(&closed).await);
    // The two boxes swap their rules, and swap them back.
    for (first, second) in [("open", "closed"), ("closed", "open"), ("open", "closed")] {
        wait_for_outcome(&s, &open, first).await;
        wait_for_outcome(&s, &closed, second).await;
        let [to_first, to_second] = match first {
            "open" => [&closing, &opening],
            _ => [&opening, &closing],
        };
        kubectl.patch(&policy_of(&open), to_first).await;
        kubectl.patch(&policy_of(&closed), to_second).await;
    }
    wait_for_outcome(&s, &open, "closed").await;
    kubectl.patch(&policy_of(&closed), &closing).await;
    wait_for_outcome(&s, &closed, "closed").await;
    // No packet arrives while both boxes are closed.
    let received = listener.received();
    wait_for_outcome(&s, &open, "closed").await;
    wait_for_outcome(&s, &closed, "closed").await;
    assert_eq!(listener.received(), received);
    s.clean().await.unwrap();
}

/// Waits for a state of the policy, while polling `changes`.
async fn wait_for_policy(
    kubectl: &Kubectl,
    spec: &BoxSpec,
    changes: &mut ChangeStream,
    is_expected: impl Fn(&Value) -> bool,
) {
    let path = policy_of(spec);
    let begun = Instant::now();
    let reached = async {
        while !is_expected(&kubectl.get(&path).await) {
            tokio::time::sleep(agentbox_testing::pause(begun.elapsed())).await;
        }
    };
    let watching = async { while changes.next().await.is_some() {} };
    let outcome = tokio::time::timeout(Duration::from_secs(30), async {
        tokio::select! { () = reached => true, () = watching => false }
    });
    assert_eq!(outcome.await, Ok(true), "{}", kubectl.get(&path).await);
}

#[tokio::test]
async fn deleted_policy_is_restored_by_the_watcher() {
    let kubectl = kubectl().await;
    // A deployment of its own, which no other driver watches.
    let mut config = config().await;
    config.deployment = "policies".to_owned();
    let s = subject_with(&config);
    let spec = s.spec();
    s.run(&spec).await.unwrap();
    let path = policy_of(&spec);
    let created = kubectl.get(&path).await["spec"].clone();
    assert!(created["egress"].is_array(), "{created}");
    // The policy is deleted twice: before the watch starts, and while it runs.
    kubectl.delete(&path).await;
    assert_eq!(kubectl.get(&path).await["code"], 404);
    let mut changes = s.second.watch().await.unwrap();
    wait_for_policy(&kubectl, &spec, &mut changes, |now| now["spec"] == created).await;
    let first = kubectl.get(&path).await["metadata"]["uid"].clone();
    kubectl.delete(&path).await;
    wait_for_policy(&kubectl, &spec, &mut changes, |now| {
        now["spec"] == created && now["metadata"]["uid"] != first
    })
    .await;
    // The watcher does not restore the policy of a removed box.
    s.clean().await.unwrap();
    wait_for_policy(&kubectl, &spec, &mut changes, |now| now["code"] == 404).await;
}

#[tokio::test]
async fn address_of_a_node_that_joins_is_closed_for_running_boxes() {
    let kubectl = kubectl().await;
    let mut config = config().await;
    // An address that only this test's deployment does not list in `cluster_cidrs`, so that no other
    // test's policies change.
    let address = cluster_address(&config, 77);
    config.deployment = "nodes".to_owned();
    config.cluster_cidrs = vec![
        format!("{}/21", cluster_address(&config, 2048))
            .parse()
            .unwrap(),
    ];
    let s = subject_with(&config);
    let mut spec = s.spec();
    spec.isolation.network_policy = Some(cidrs(&["10.0.0.0/8"]));
    s.run(&spec).await.unwrap();
    let excludes = |policy: &Value| policy["spec"].to_string().contains(&address.to_string());
    let path = policy_of(&spec);
    assert!(!excludes(&kubectl.get(&path).await));
    let mut changes = s.second.watch().await.unwrap();
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "generateName": "joins-" },
        // No Pod is scheduled there.
        "spec": { "unschedulable": true },
        "status": { "addresses": [{ "type": "ExternalIP", "address": address.to_string() }] },
    });
    let node = kubectl.post("/api/v1/nodes", &node).await;
    wait_for_policy(&kubectl, &spec, &mut changes, excludes).await;
    let name = node["metadata"]["name"].as_str().unwrap();
    kubectl.delete(&format!("/api/v1/nodes/{name}")).await;
    wait_for_policy(&kubectl, &spec, &mut changes, |now| !excludes(now)).await;
    s.clean().await.unwrap();
}
