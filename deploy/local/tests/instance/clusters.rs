//! One instance with boxes on two clusters: placement, and operation while one cluster is
//! unreachable.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use agentbox_testing::{Components, KubernetesEndpoint, Options, System};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, small};
use crate::host::{remains, tool};
use crate::kills::status;
use crate::kubernetes::remains as of_kubernetes;

const BOTH: Components = Components {
    kubernetes: true,
    ..Components::ALL
};
const NAMES: [&str; 2] = ["containerd", "kubernetes"];
const PATIENCE: Duration = Duration::from_secs(60);

async fn start() -> System {
    let options = Options::components(BOTH).without_rate_limits();
    System::start(options).await.unwrap()
}

/// Stops the system; nothing of either cluster is left.
async fn stop(system: System) {
    let containerd = system.containerd.clone().unwrap();
    let kubernetes = system.kubernetes.clone().unwrap();
    system.stop().await;
    assert_eq!(remains(&containerd), Vec::<String>::new());
    assert_eq!(of_kubernetes(&kubernetes), Vec::<String>::new());
}

/// The cluster of a running box: the endpoint is an address on containerd and a name on
/// Kubernetes.
fn cluster_of(environment: &Value) -> &'static str {
    let endpoint = environment["endpoint"].as_str().unwrap();
    NAMES[usize::from(endpoint.parse::<IpAddr>().is_err())]
}

/// A request that selects this cluster.
fn wanted_on(cluster: &str, name: &str) -> Value {
    let mut body = small(name);
    body["node_selector"] = json!({ "runtime": cluster });
    body
}

async fn running(api: &Api, body: Value) -> Value {
    let created = api.create_as(body).await;
    api.reaches(created["id"].as_str().unwrap(), "running")
        .await
}

/// A running box without a connection from exec-proxy. It is found in the list, because a GET of
/// one environment opens a connection for its usage.
async fn unused(api: &Api, body: Value) -> String {
    let created = api.create_as(body).await;
    let begun = Instant::now();
    loop {
        let list = api.list().await;
        let mut listed = list["environments"].as_array().unwrap().iter();
        let seen = listed.find(|one| one["id"] == created["id"]).unwrap();
        if seen["status"] == "running" {
            return created["id"].as_str().unwrap().to_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "{seen}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The status of the response to an exec, and its latency.
async fn exec_once(api: &Api, id: &str) -> (u16, Duration) {
    let begun = Instant::now();
    let path = format!("/environments/{id}/exec");
    let body = json!({ "command": ["true"] });
    let (status, _) = api.once(Method::POST, &path, Some(body)).await;
    (status, begun.elapsed())
}

fn is_unavailable(status: u16) -> bool {
    (502..=504).contains(&status)
}

/// Creates, uses and deletes a box.
async fn create_use_delete(api: &Api, body: Value, on: &str) {
    let environment = running(api, body).await;
    assert_eq!(cluster_of(&environment), on, "{environment}");
    let id = environment["id"].as_str().unwrap();
    let said = api.exec(id, "echo here; exit 3").await;
    assert_eq!(said["exit_code"], 3, "{said}");
    api.delete(id).await;
    api.reaches(id, "terminated").await;
}

/// Waits until `/health` has this status; gives for each cluster whether it is connected.
async fn health(api: &Api, status: &str) -> [bool; 2] {
    let begun = Instant::now();
    loop {
        let (_, body) = api.once(Method::GET, "/health", None).await;
        if body["status"] == status {
            let clusters = body["clusters"].as_array().unwrap();
            let names: Vec<_> = clusters.iter().map(|c| c["name"].as_str()).collect();
            assert_eq!(names, NAMES.map(Some), "{body}");
            return [0, 1].map(|n| clusters[n]["connected"] == true);
        }
        assert!(begun.elapsed() < PATIENCE, "not {status}: {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn boxes_are_placed_by_node_selector_and_on_both_clusters_without_one() {
    let system = start().await;
    let api = Api::of(&system).await;
    assert_eq!(health(&api, "healthy").await, [true, true]);
    let mut ids = Vec::new();
    for cluster in NAMES {
        let mut body = wanted_on(cluster, cluster);
        let script = format!("echo said on {cluster}; exec sleep 1000");
        body["command"] = json!(["sh", "-c", script]);
        let environment = running(&api, body).await;
        assert_eq!(cluster_of(&environment), cluster, "{environment}");
        let id = environment["id"].as_str().unwrap().to_owned();
        let said = api.exec(&id, "echo kept > /file; cat /file").await;
        assert_eq!(said["stdout"], "kept\n", "{said}");
        let (_, logs) = api
            .once(Method::GET, &format!("/environments/{id}/logs"), None)
            .await;
        let line = &logs["logs"][0]["message"];
        assert_eq!(*line, format!("said on {cluster}"), "{logs}");
        ids.push(id);
    }
    let nowhere = Some(wanted_on("elsewhere", "nowhere"));
    let (refused, why) = api.once(Method::POST, "/environments", nowhere).await;
    assert_eq!(refused, 400, "{why}");

    let begun = Instant::now();
    let mut used: Vec<&str> = Vec::new();
    while !NAMES.iter().all(|name| used.contains(name)) {
        assert!(begun.elapsed() < PATIENCE, "all of them are on {used:?}");
        let environment = running(&api, small(&format!("any-{}", used.len()))).await;
        used.push(cluster_of(&environment));
        ids.push(environment["id"].as_str().unwrap().to_owned());
    }
    let said = status(&system);
    for cluster in NAMES {
        assert!(said.contains(&format!("boxes on {cluster}: ")), "{said}");
    }
    for id in &ids {
        api.delete(id).await;
    }
    for id in &ids {
        api.reaches(id, "terminated").await;
    }
    stop(system).await;
}

/// A way to make a cluster unreachable.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Stops (SIGSTOP) a program that all requests go through.
    Freeze(&'static str),
    /// Cuts the network to the cluster, including its boxes.
    Cut,
}

impl Loss {
    const fn word(self) -> &'static str {
        match self {
            Self::Freeze(program) => program,
            Self::Cut => "cut",
        }
    }

    fn begin(self, system: &System) {
        self.set(system, Signal::SIGSTOP, "down");
    }

    fn end(self, system: &System) {
        self.set(system, Signal::SIGCONT, "up");
    }

    fn set(self, system: &System, signal: Signal, link: &str) {
        match self {
            Self::Freeze(program) => assert!(system.signal(program, 0, signal)),
            Self::Cut => {
                let port = port_of(system.kubernetes.as_ref().unwrap());
                tool("ip", &["link", "set", &port, link]);
            }
        }
    }
}

/// The link to the cluster's node, by its name on this machine.
fn port_of(cluster: &KubernetesEndpoint) -> String {
    let node = cluster.node().unwrap().to_string();
    let route = tool("ip", &["-4", "route", "get", &node]);
    let words: Vec<&str> = route.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "dev").unwrap();
    format!("{}n", words[at + 1])
}

/// Makes the cluster `lost` unreachable, and reachable again.
async fn survives(system: &System, lost: usize, loss: Loss) {
    let (lost, living) = (NAMES[lost], NAMES[1 - lost]);
    let api = Api::of(system).await;
    let name = |what: &str| format!("{what}-{}", loss.word());
    let lasting = running(&api, wanted_on(lost, &name("lasting"))).await;
    let doomed = running(&api, wanted_on(lost, &name("doomed"))).await;
    let (lasting_id, doomed_id) = (
        lasting["id"].as_str().unwrap(),
        doomed["id"].as_str().unwrap(),
    );
    let unused_id = &unused(&api, wanted_on(lost, &name("unused"))).await;

    loss.begin(system);
    assert_eq!(health(&api, "degraded").await, NAMES.map(|n| n == living));
    api.delete(doomed_id).await;
    let (used, unused) = tokio::join!(exec_once(&api, lasting_id), exec_once(&api, unused_id));
    println!("{loss:?}: exec answers {used:?}, without a connection {unused:?}");
    match loss {
        // Boxes on this machine are reached without containerd.
        Loss::Freeze("containerd") => assert_eq!((used.0, unused.0), (200, 200)),
        Loss::Freeze(_) => assert_eq!((used.0, unused.0), (200, 503)),
        Loss::Cut => assert!(is_unavailable(used.0) && is_unavailable(unused.0)),
    }
    let wish = Some(wanted_on(lost, &name("wish")));
    let (refused, why) = api.once(Method::POST, "/environments", wish).await;
    assert_eq!(refused, 503, "{why}");
    assert!(why["message"].as_str().unwrap().contains(lost), "{why}");
    for n in 0..3 {
        create_use_delete(&api, small(&name(&format!("any-{n}"))), living).await;
    }
    let waits = api.get(doomed_id).await;
    assert_eq!(waits["status"], "terminating", "{waits}");

    loss.end(system);
    assert_eq!(health(&api, "healthy").await, [true, true]);
    let ended = api.reaches(doomed_id, "terminated").await;
    assert_eq!(ended["status_reason"], "DELETED", "{ended}");
    for id in [lasting_id, unused_id] {
        let said = api.exec(id, "echo still here").await;
        assert_eq!(said["stdout"], "still here\n", "{said}");
    }
    let still = api.get(lasting_id).await;
    for field in ["status", "started_at", "endpoint"] {
        assert_eq!(still[field], lasting[field], "{still}");
    }
    create_use_delete(&api, wanted_on(lost, &name("again")), lost).await;
    for id in [lasting_id, unused_id] {
        api.delete(id).await;
        api.reaches(id, "terminated").await;
    }
}

#[tokio::test]
async fn unreachable_containerd_delays_only_its_own_boxes() {
    let system = start().await;
    survives(&system, 0, Loss::Freeze("containerd")).await;
    stop(system).await;
}

#[tokio::test]
async fn unreachable_kubernetes_delays_only_its_own_boxes() {
    let system = start().await;
    survives(&system, 1, Loss::Freeze("kube-apiserver")).await;
    survives(&system, 1, Loss::Cut).await;
    stop(system).await;
}
