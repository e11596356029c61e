//! One instance with boxes on two clusters: placement, and operation while one cluster is
//! unreachable.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use agentbox_testing::{Components, KubernetesEndpoint, Options, System, eventually};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, small};
use crate::host::{leftovers_of_ended, tool};
use crate::kills::status;
use crate::kubernetes::leftovers as kubernetes_leftovers;

const BOTH: Components = Components {
    kubernetes: true,
    ..Components::ALL
};
const NAMES: [&str; 2] = ["containerd", "kubernetes"];
const DEADLINE: Duration = Duration::from_secs(60);

async fn start() -> System {
    let options = Options::components(BOTH).without_rate_limits();
    System::start(options).await.unwrap()
}

/// Stops the system; nothing of either cluster is left.
async fn stop(system: System) {
    let containerd = system.containerd.clone().unwrap();
    let kubernetes = system.kubernetes.clone().unwrap();
    system.stop().await;
    assert_eq!(leftovers_of_ended(&containerd), Vec::<String>::new());
    assert_eq!(kubernetes_leftovers(&kubernetes), Vec::<String>::new());
}

/// The cluster of a running box: the endpoint is an address on containerd and a name on
/// Kubernetes.
fn cluster_of(environment: &Value) -> &'static str {
    let endpoint = environment["endpoint"].as_str().unwrap();
    NAMES[usize::from(endpoint.parse::<IpAddr>().is_err())]
}

/// A request that selects this cluster.
fn request_for(cluster: &str, name: &str) -> Value {
    let mut body = small(name);
    body["node_selector"] = json!({ "runtime": cluster });
    body
}

async fn running(api: &Api, body: Value) -> Value {
    let created = api.create_as(body).await;
    api.wait_for_status(created["id"].as_str().unwrap(), "running")
        .await
}

/// A running box without a connection from exec-proxy. It is found in the list, because a GET of
/// one environment opens a connection for its usage.
async fn running_without_connection(api: &Api, body: Value) -> String {
    let created = api.create_as(body).await;
    let begun = Instant::now();
    loop {
        let list = api.list().await;
        let mut listed = list["environments"].as_array().unwrap().iter();
        let seen = listed.find(|one| one["id"] == created["id"]).unwrap();
        if seen["status"] == "running" {
            return created["id"].as_str().unwrap().to_owned();
        }
        assert!(begun.elapsed() < DEADLINE, "{seen}");
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
    let result = api.exec(id, "echo here; exit 3").await;
    assert_eq!(result["exit_code"], 3, "{result}");
    api.delete(id).await;
    api.wait_for_status(id, "terminated").await;
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
        assert!(begun.elapsed() < DEADLINE, "not {status}: {body}");
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
        let mut body = request_for(cluster, cluster);
        let script = format!("echo output on {cluster}; exec sleep 1000");
        body["command"] = json!(["sh", "-c", script]);
        let environment = running(&api, body).await;
        assert_eq!(cluster_of(&environment), cluster, "{environment}");
        let id = environment["id"].as_str().unwrap().to_owned();
        let result = api.exec(&id, "echo kept > /file; cat /file").await;
        assert_eq!(result["stdout"], "kept\n", "{result}");
        let path = format!("/environments/{id}/logs");
        eventually("its output is kept", DEADLINE, async || {
            let (_, logs) = api.once(Method::GET, &path, None).await;
            logs["logs"][0]["message"] == format!("output on {cluster}")
        })
        .await;
        ids.push(id);
    }
    // Only one of the two runs an image's own command. Busybox's is a shell, which ends without input.
    let mut body = request_for("kubernetes", "entrypoint");
    body["use_entrypoint"] = json!(true);
    let (refused, why) = api
        .once(Method::POST, "/environments", Some(body.clone()))
        .await;
    assert_eq!(refused, 400, "{why}");
    body["node_selector"] = json!({});
    let of_image = api.create_as(body).await;
    api.wait_for_status(of_image["id"].as_str().unwrap(), "terminated")
        .await;
    let nowhere = Some(request_for("elsewhere", "nowhere"));
    let (refused, why) = api.once(Method::POST, "/environments", nowhere).await;
    assert_eq!(refused, 400, "{why}");

    let begun = Instant::now();
    let mut used: Vec<&str> = Vec::new();
    while !NAMES.iter().all(|name| used.contains(name)) {
        assert!(begun.elapsed() < DEADLINE, "all of them are on {used:?}");
        let environment = running(&api, small(&format!("any-{}", used.len()))).await;
        used.push(cluster_of(&environment));
        ids.push(environment["id"].as_str().unwrap().to_owned());
    }
    let report = status(&system);
    for cluster in NAMES {
        assert!(
            report.contains(&format!("boxes on {cluster}: ")),
            "{report}"
        );
    }
    for id in &ids {
        api.delete(id).await;
    }
    for id in &ids {
        api.wait_for_status(id, "terminated").await;
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
    const fn as_str(self) -> &'static str {
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

    fn set(self, system: &System, signal: Signal, state: &str) {
        match self {
            Self::Freeze(program) => assert!(system.signal(program, 0, signal)),
            Self::Cut => {
                let link_name = link_of(system.kubernetes.as_ref().unwrap());
                tool("ip", &["link", "set", &link_name, state]);
            }
        }
    }
}

/// The name, on this machine, of the link to the cluster's node.
fn link_of(cluster: &KubernetesEndpoint) -> String {
    let node = cluster.node().unwrap().to_string();
    let route = tool("ip", &["-4", "route", "get", &node]);
    let words: Vec<&str> = route.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "dev").unwrap();
    format!("{}n", words[at + 1])
}

/// Makes the cluster `lost` unreachable and then reachable again. Checks that only its own
/// environments wait meanwhile, and that its boxes survive.
async fn check_loss(system: &System, lost: usize, loss: Loss) {
    let (lost, reachable) = (NAMES[lost], NAMES[1 - lost]);
    let api = Api::of(system).await;
    let name = |what: &str| format!("{what}-{}", loss.as_str());
    let lasting = running(&api, request_for(lost, &name("lasting"))).await;
    let doomed = running(&api, request_for(lost, &name("doomed"))).await;
    let (lasting_id, doomed_id) = (
        lasting["id"].as_str().unwrap(),
        doomed["id"].as_str().unwrap(),
    );
    let unused_id = &running_without_connection(&api, request_for(lost, &name("unused"))).await;

    loss.begin(system);
    assert_eq!(
        health(&api, "degraded").await,
        NAMES.map(|n| n == reachable)
    );
    api.delete(doomed_id).await;
    let (used, unused) = tokio::join!(exec_once(&api, lasting_id), exec_once(&api, unused_id));
    println!("{loss:?}: exec with a connection {used:?}, without one {unused:?}");
    match loss {
        // Boxes on this machine are reached without containerd.
        Loss::Freeze("containerd") => assert_eq!((used.0, unused.0), (200, 200)),
        Loss::Freeze(_) => assert_eq!((used.0, unused.0), (200, 503)),
        Loss::Cut => assert!(is_unavailable(used.0) && is_unavailable(unused.0)),
    }
    let body = Some(request_for(lost, &name("refused")));
    let (refused, why) = api.once(Method::POST, "/environments", body).await;
    assert_eq!(refused, 503, "{why}");
    assert!(why["message"].as_str().unwrap().contains(lost), "{why}");
    for n in 0..3 {
        create_use_delete(&api, small(&name(&format!("any-{n}"))), reachable).await;
    }
    let waiting = api.get(doomed_id).await;
    assert_eq!(waiting["status"], "terminating", "{waiting}");

    loss.end(system);
    assert_eq!(health(&api, "healthy").await, [true, true]);
    let ended = api.wait_for_status(doomed_id, "terminated").await;
    assert_eq!(ended["status_reason"], "DELETED", "{ended}");
    for id in [lasting_id, unused_id] {
        let result = api.exec(id, "echo still here").await;
        assert_eq!(result["stdout"], "still here\n", "{result}");
    }
    let still = api.get(lasting_id).await;
    for field in ["status", "started_at", "endpoint"] {
        assert_eq!(still[field], lasting[field], "{still}");
    }
    create_use_delete(&api, request_for(lost, &name("again")), lost).await;
    for id in [lasting_id, unused_id] {
        api.delete(id).await;
        api.wait_for_status(id, "terminated").await;
    }
}

#[tokio::test]
async fn unreachable_containerd_delays_only_its_own_boxes() {
    let system = start().await;
    check_loss(&system, 0, Loss::Freeze("containerd")).await;
    stop(system).await;
}

#[tokio::test]
async fn unreachable_kubernetes_delays_only_its_own_boxes() {
    let system = start().await;
    check_loss(&system, 1, Loss::Freeze("kube-apiserver")).await;
    check_loss(&system, 1, Loss::Cut).await;
    stop(system).await;
}
