//! A changed policy applies to a running box, and a deleted one is restored.

use std::cell::Cell;
use std::time::Duration;

use agentbox_runtime::conformance::{Subject, eventually};
use agentbox_runtime::{BoxConnector as _, BoxSpec, ChangeStream, NetworkPolicy, Runtime as _};
use agentbox_runtime_kubernetes::Driver;
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::internet;
use super::places::{Listener, PUBLIC, elsewhere};
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
    let stays = eventually(outcome, || async {
        let (last, came_out) = last_attempt(s, spec).await;
        if came_out != outcome {
            return Ok(None);
        }
        // The next one may be under way.
        let from = first.get().unwrap_or(last) + 1;
        first.set(first.get().or(Some(last)));
        Ok((last > from).then_some(()))
    });
    if let Err(violation) = stays.await {
        panic!("{violation}; last: {:?}", last_attempt(s, spec).await);
    }
}

/// Where Kubernetes has a box's policy.
fn policy_of(spec: &BoxSpec) -> String {
    let namespace = format!("/apis/networking.k8s.io/v1/namespaces/agentbox-{}", spec.id);
    format!("{namespace}/networkpolicies/main")
}

#[tokio::test]
async fn changed_policy_applies_to_a_running_box() {
    let (s, kubectl) = (subject().await, kubectl().await);
    let listener = Listener::on(elsewhere().await, PUBLIC, 0);
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
        let (kubectl, at) = (&kubectl, policy_of(spec));
        // Rules that are not there are null, which takes them away.
        async move { json!({ "spec": { "egress": kubectl.get(&at).await["spec"]["egress"] } }) }
    };
    let (opening, closing) = (rules(&open).await, rules(&closed).await);
    // Each becomes what the other was, and then itself again.
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
    // No packet arrives while it is closed.
    let heard = listener.heard();
    wait_for_outcome(&s, &open, "closed").await;
    wait_for_outcome(&s, &closed, "closed").await;
    assert_eq!(listener.heard(), heard);
    s.clean().await.unwrap();
}

/// Waits for a state of the policy, while polling `changes`.
async fn wait_for_policy(
    kubectl: &Kubectl,
    spec: &BoxSpec,
    changes: &mut ChangeStream,
    is_as_wished: impl Fn(&Value) -> bool,
) {
    let at = policy_of(spec);
    let wished = async {
        while !is_as_wished(&kubectl.get(&at).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let following = async { while changes.next().await.is_some() {} };
    let came = tokio::time::timeout(Duration::from_secs(30), async {
        tokio::select! { () = wished => true, () = following => false }
    });
    assert_eq!(came.await, Ok(true), "{}", kubectl.get(&at).await);
}

#[tokio::test]
async fn deleted_policy_is_restored_by_the_watcher() {
    let kubectl = kubectl().await;
    // A deployment of its own: nobody else watches it.
    let mut config = config().await;
    config.deployment = "policies".to_owned();
    let s = subject_with(&config);
    let spec = s.spec();
    s.run(&spec).await.unwrap();
    let at = policy_of(&spec);
    let made = kubectl.get(&at).await["spec"].clone();
    assert!(made["egress"].is_array(), "{made}");
    // While nobody watches, and while somebody does.
    kubectl.delete(&at).await;
    assert_eq!(kubectl.get(&at).await["code"], 404);
    let mut changes = s.second.watch().await.unwrap();
    wait_for_policy(&kubectl, &spec, &mut changes, |now| now["spec"] == made).await;
    let first = kubectl.get(&at).await["metadata"]["uid"].clone();
    kubectl.delete(&at).await;
    wait_for_policy(&kubectl, &spec, &mut changes, |now| {
        now["spec"] == made && now["metadata"]["uid"] != first
    })
    .await;
    // It does not hold up a box's end.
    s.clean().await.unwrap();
    wait_for_policy(&kubectl, &spec, &mut changes, |now| now["code"] == 404).await;
}
