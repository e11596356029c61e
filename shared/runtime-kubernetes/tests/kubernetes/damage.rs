//! Boxes during failures of their cluster: a stopped kubelet, a hung API server, a tainted node.
//! The tests damage a cluster of their own, and run one at a time.

use std::time::{Duration, Instant};

use agentbox_box_protocol::client;
use agentbox_box_protocol::proto::UsageRequest;
use agentbox_box_protocol::token::BoxToken;
use agentbox_contracts::environment::Toleration;
use agentbox_runtime::conformance::{Subject, eventually};
use agentbox_runtime::{BoxConnector as _, BoxPhase, ExitReason, Runtime as _, RuntimeError};
use agentbox_runtime_kubernetes::{Config, Driver};
use agentbox_testing::TestKubernetes;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::cluster::{Kubectl, config_of, kubectl_of, subject_with};

const NODES: &str = "/api/v1/nodes";
/// The controllers mark a silent node as not ready after most of a minute.
const NODE_TIMEOUT: Duration = Duration::from_secs(120);

struct DamagedCluster {
    kubernetes: TestKubernetes,
    node: String,
}

impl DamagedCluster {
    async fn start() -> Mutex<Self> {
        let kubernetes = TestKubernetes::start().await.expect("Kubernetes starts");
        let kubectl = kubectl_of(&config_of(&kubernetes)).await;
        let nodes = kubectl.get(NODES).await;
        let name = nodes["items"][0]["metadata"]["name"].as_str();
        let node = format!("{NODES}/{}", name.expect("a node"));
        Mutex::new(Self { kubernetes, node })
    }

    /// A new client for each test: a connection ends with the runtime of the test that opened it.
    async fn kubectl(&self) -> Kubectl {
        kubectl_of(&config_of(&self.kubernetes)).await
    }

    fn subject(&self, change: impl FnOnce(&mut Config)) -> Subject<Driver> {
        let mut config = config_of(&self.kubernetes);
        change(&mut config);
        subject_with(&config)
    }

    fn signal(&self, program: &str, signal: Signal) {
        let is_running = self.kubernetes.system.signal(program, 0, signal);
        assert!(is_running, "{program} does not run");
    }

    async fn has_a_ready_node(&self, kubectl: &Kubectl) -> bool {
        let node = kubectl.get(&self.node).await;
        let conditions = node["status"]["conditions"].as_array();
        let is_ready =
            |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        conditions.into_iter().flatten().any(is_ready) && node["spec"]["taints"].is_null()
    }
}

static CLUSTER: OnceCell<Mutex<DamagedCluster>> = OnceCell::const_new();

async fn cluster() -> MutexGuard<'static, DamagedCluster> {
    CLUSTER
        .get_or_init(DamagedCluster::start)
        .await
        .lock()
        .await
}

#[tokio::test]
async fn box_on_unready_node_is_lost_and_removed_without_waiting() {
    let cluster = cluster().await;
    let subject = cluster.subject(|config| config.node_lost_after_s = 1);
    let spec = subject.spec();
    subject.run(&spec).await.unwrap();
    cluster.signal("kubelet", Signal::SIGSTOP);
    agentbox_testing::eventually("the box is lost", NODE_TIMEOUT, async || {
        let seen = subject.second.get(&spec.id).await.unwrap().unwrap();
        matches!(
            seen.phase,
            BoxPhase::Exited {
                reason: ExitReason::NodeLost,
                ..
            }
        )
    })
    .await;
    subject.first.remove(&spec.id).await.unwrap();
    assert_eq!(subject.second.get(&spec.id).await.unwrap(), None);
    cluster.signal("kubelet", Signal::SIGCONT);
    let kubectl = cluster.kubectl().await;
    let back = || cluster.has_a_ready_node(&kubectl);
    agentbox_testing::eventually("the node is back", NODE_TIMEOUT, back).await;
    let next = subject.script("exit 4");
    assert_eq!(subject.run_to_end(&next).await.unwrap().exit_code, 4);
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn hung_api_server_returns_errors_in_time_and_ends_no_box() {
    let cluster = cluster().await;
    let subject = cluster.subject(|config| config.call_deadline_s = 2);
    let spec = subject.spec();
    let address = subject.run(&spec).await.unwrap();
    let stream = subject.first.connect(&spec.id, address).await.unwrap();
    let token = BoxToken::parse(&spec.boxd_token).unwrap();
    let mut boxd = client::connect(stream, &token).await.unwrap();
    cluster.signal("kube-apiserver", Signal::SIGSTOP);
    let begun = Instant::now();
    let refused = [
        subject.first.get(&spec.id).await.map(|_| ()),
        subject.first.list().await.map(|_| ()),
        subject.first.capacity().await.map(|_| ()),
        subject.first.ensure(&subject.spec(), 1).await.map(|_| ()),
    ];
    let took = begun.elapsed();
    for outcome in refused {
        let is_outage = matches!(
            outcome,
            Err(RuntimeError::Unavailable(_) | RuntimeError::Deadline(_))
        );
        assert!(is_outage, "{outcome:?}");
    }
    assert!(took < Duration::from_secs(60), "{took:?}");
    // An open connection to boxd needs no API server.
    boxd.usage(UsageRequest {}).await.unwrap();
    cluster.signal("kube-apiserver", Signal::SIGKILL);
    eventually("the API server is back", || async {
        Ok(subject.second.get(&spec.id).await.ok().flatten())
    })
    .await
    .unwrap();
    let seen = subject.second.get(&spec.id).await.unwrap().unwrap();
    assert!(matches!(seen.phase, BoxPhase::Running { .. }), "{seen:?}");
    agentbox_testing::eventually("boxes start again", NODE_TIMEOUT, async || {
        let next = subject.script("exit 4");
        let end = subject.run_to_end(&next).await;
        end.is_ok_and(|end| end.exit_code == 4)
    })
    .await;
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn selector_and_tolerations_decide_where_a_box_runs() {
    let cluster = cluster().await;
    let kubectl = cluster.kubectl().await;
    let taint = json!([{ "key": "team", "value": "ci", "effect": "NoSchedule" }]);
    let change =
        json!({ "metadata": { "labels": { "disk": "fast" } }, "spec": { "taints": taint } });
    kubectl.patch(&cluster.node, &change).await;
    let subject = cluster.subject(|config| config.start_deadline_s = 1);
    let mut spec = subject.script("exit 0");
    spec.node_selector
        .insert("disk".to_owned(), "fast".to_owned());
    eventually("the scheduler names the taint", || async {
        let phase = subject.first.ensure(&spec, 1).await?.phase;
        let names_taint =
            matches!(&phase, BoxPhase::Starting { message } if message.contains("taint"));
        Ok(names_taint.then_some(()))
    })
    .await
    .unwrap();
    let mut tolerant = spec.clone();
    tolerant.id = subject.spec().id;
    tolerant.tolerations.push(Toleration {
        key: Some("team".to_owned()),
        operator: None,
        value: Some("ci".to_owned()),
        effect: Some("NoSchedule".to_owned()),
        toleration_seconds: None,
    });
    assert_eq!(subject.run_to_end(&tolerant).await.unwrap().exit_code, 0);
    let change = json!({ "metadata": { "labels": { "disk": null } }, "spec": { "taints": null } });
    kubectl.patch(&cluster.node, &change).await;
    subject.clean().await.unwrap();
}
