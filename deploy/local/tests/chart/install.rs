//! The whole life of a release: installation, the workflow of the API's user guide, restarts under
//! load, an upgrade and the removal.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, NAMESPACE, RELEASE, SERVICES};
use crate::guide::run_workflow;
use crate::helm::chart;
use crate::load::{Client, Load, Tally};
use crate::{admission, external, follow, manifests, network, rbac};

/// Including `pip install`.
const GUIDE_DEADLINE: Duration = Duration::from_secs(300);
/// A line every 100 ms.
const COUNTING: &str = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done";

#[tokio::test]
async fn chart_runs_the_guide_and_restarts_without_a_failed_request() {
    let cluster = Cluster::start().await;
    manifests::are_valid(&cluster).await;
    let begun = Instant::now();
    install(&cluster, &["install", "--wait", "--timeout", "2m"]).await;
    println!("installed and ready after {:.1?}", begun.elapsed());
    for service in SERVICES {
        assert_eq!(cluster.pods(service).await.len(), 2, "{service}");
    }
    let (url, password) = (cluster.url().await, cluster.password().await);
    let client = Client::login(&url, &password, true).await;
    let begun = Instant::now();
    run_workflow(&url, client.token(), GUIDE_DEADLINE).await;
    println!("the guide's workflow took {:.1?}", begun.elapsed());
    use_every_right(&client).await;
    remove_first_password(&cluster).await;
    network::policies_are_enforced(&cluster).await;
    network::event_consumer_reads_events_and_nothing_else(&cluster, &client).await;
    admission::scheduler_is_bound_to_boxes(&cluster).await;
    restart_under_load(&cluster, &url, &password).await;
    rbac::rights_match_use(&cluster).await;
    stores_may_restart(&cluster, &client).await;
    upgrade_keeps_secrets(&cluster, &client).await;
    uninstall(&cluster).await;
    external::release_uses_external_stores_and_secrets(&cluster).await;
    cluster.stop().await;
}

async fn install(cluster: &Cluster, words: &[&str]) {
    let values = cluster.helm.values("own.json", &cluster.values());
    let chart = chart().display().to_string();
    let mut all = words.to_vec();
    all.extend([
        RELEASE,
        &chart,
        "--namespace",
        NAMESPACE,
        "--values",
        &values,
    ]);
    let output = cluster.helm.run(&all).await;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        panic!("helm {all:?}: {stderr}\n{}", cluster.report().await);
    }
}

/// Requests that neither the guide nor the load sends: a runtime class, a box that ends by itself,
/// and a forced deletion.
async fn use_every_right(client: &Client) {
    let class = json!({ "isolation": { "runtime_class": "none-such" } });
    let refused = client.create("class", class).await.unwrap_err();
    assert!(refused.contains("400"), "{refused}");
    let ends = json!({ "command": ["sh", "-c", "echo bye"] });
    let id = client.create("ends", ends).await.unwrap();
    client.wait_for_status(&id, &["terminated"]).await.unwrap();
    let logs = format!("/environments/{id}/logs");
    let (_, reply) = client
        .ask(reqwest::Method::GET, &logs, None, 200)
        .await
        .unwrap();
    assert!(reply.to_string().contains("bye"), "{reply}");
    let stubborn = json!({ "command": ["sh", "-c", "trap '' TERM; while true; do sleep 1; done"] });
    let id = client.create("stubborn", stubborn).await.unwrap();
    client.wait_for_status(&id, &["running"]).await.unwrap();
    let force = format!("/environments/{id}?force=true");
    client
        .ask(reqwest::Method::DELETE, &force, None, 204)
        .await
        .unwrap();
    client.wait_for_status(&id, &["terminated"]).await.unwrap();
}

/// The first password may be removed: the restarts and the upgrade that follow need none, and make
/// none.
async fn remove_first_password(cluster: &Cluster) {
    let secrets: Api<Secret> = cluster.api();
    let removed = json!({ "data": { "admin-password": null } });
    let secret = secrets
        .patch(
            "agentbox-auth",
            &PatchParams::default(),
            &Patch::Merge(&removed),
        )
        .await
        .unwrap();
    let keys = secret.data.unwrap();
    assert!(!keys.contains_key("admin-password"), "{:?}", keys.keys());
}

async fn restart_under_load(cluster: &Cluster, url: &str, password: &str) {
    let keep_alive = Client::login(url, password, true).await;
    let fresh = Client::login(url, password, false).await;
    let mut boxes = Vec::new();
    for name in ["one", "two"] {
        let counting = json!({ "command": ["sh", "-c", COUNTING] });
        let id = keep_alive.create(name, counting).await.unwrap();
        keep_alive.wait_for_status(&id, &["running"]).await.unwrap();
        boxes.push(id);
    }
    let boxes: [String; 2] = boxes.try_into().unwrap();
    let stop = CancellationToken::new();
    let long = follow::follow_until_stopped(keep_alive.clone(), boxes[0].clone(), stop.clone());
    let load = Load::start(&keep_alive, &fresh, &boxes);
    // Before the first restart, so that its failures differ from those of the load's start.
    let is_steady = |tally: &Tally| tally.creates >= 2 && tally.execs >= 10 && tally.follows >= 5;
    load.wait_until("a steady load", is_steady).await;
    for service in SERVICES {
        let from = load.elapsed();
        cluster.restart(service).await;
        println!(
            "{service} restarted from {from:.1?} to {:.1?}",
            load.elapsed()
        );
    }
    // The load continues after the last restart.
    let is_enough = |tally: &Tally| tally.creates >= 8 && tally.execs >= 40 && tally.follows >= 20;
    load.wait_until("enough requests of each kind", is_enough)
        .await;
    let took = load.elapsed();
    let tally = load.stop().await;
    stop.cancel();
    let followed = long.await.unwrap();
    println!(
        "{} creates, {} execs, {} follows, {} lists in {took:.1?}; the long follow: {} lines, resumed {} times",
        tally.creates, tally.execs, tally.follows, tally.lists, followed.lines, followed.resumed
    );
    if !tally.failures.is_empty() {
        panic!("{:#?}\n{}", tally.failures, cluster.report().await);
    }
    assert_eq!(followed.failures, Vec::<String>::new());
    assert!(tally.creates >= 8 && tally.execs >= 40 && tally.follows >= 20);
    assert!(followed.lines > 200, "{followed:?}");
    for id in &boxes {
        keep_alive.delete(id).await.unwrap();
    }
}

/// After a restart of a store the environments exist, and requests succeed without a restart of
/// another Pod.
async fn stores_may_restart(cluster: &Cluster, client: &Client) {
    let id = client.create("stays", json!({})).await.unwrap();
    client.wait_for_status(&id, &["running"]).await.unwrap();
    for store in ["nats", "postgres"] {
        cluster.restart_store(store).await;
        let path = format!("/environments/{id}");
        cluster
            .wait_until(
                &format!("requests are answered after {store}'s restart"),
                async || {
                    let known = client.ask(reqwest::Method::GET, &path, None, 200).await;
                    known.is_ok() && client.exec(&id, "again").await.is_ok()
                },
            )
            .await;
    }
    client.delete(&id).await.unwrap();
    client.wait_for_status(&id, &["terminated"]).await.unwrap();
}

async fn upgrade_keeps_secrets(cluster: &Cluster, client: &Client) {
    let secrets: Api<Secret> = cluster.api();
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=agentbox");
    let held = async || {
        let list = secrets.list(&ours).await.unwrap();
        let data = list
            .items
            .into_iter()
            .map(|secret| (secret.metadata.name, secret.data));
        data.collect::<Vec<_>>()
    };
    let before = held().await;
    assert_eq!(
        before.len(),
        SERVICES.len() + 4,
        "the provisioner, NATS and the consumer of events have one each, Postgres two; the gateway has another's"
    );
    let auth = cluster.pods("auth").await;
    let more = [
        "upgrade",
        "--wait",
        "--timeout",
        "5m",
        "--set",
        "services.execProxy.replicas=3,services.auth.autoscaling.enabled=true,\
         services.auth.autoscaling.targetCPU=1,services.auth.autoscaling.maxReplicas=3",
    ];
    install(cluster, &more).await;
    assert_eq!(held().await, before);
    assert_eq!(cluster.pods("exec-proxy").await.len(), 3);
    let left = cluster.pods("auth").await;
    let keeps_running_pods = auth.iter().all(|pod| left.contains(pod));
    assert!(keeps_running_pods, "the autoscaler keeps the running Pods");
    // An idle service uses more than one percent of its request.
    cluster
        .wait_until("the autoscaler makes one more", async || {
            cluster.pods("auth").await.len() == 3
        })
        .await;
    // The token was issued before the upgrade.
    client
        .ask(reqwest::Method::GET, "/auth/me", None, 200)
        .await
        .unwrap();
}

/// Removes the release; the stored data and the secrets that decrypt them are kept.
async fn uninstall(cluster: &Cluster) {
    let words = [
        "uninstall",
        RELEASE,
        "--namespace",
        NAMESPACE,
        "--wait",
        "--timeout",
        "3m",
    ];
    cluster.helm.succeeds(&words).await;
    let deployments: Api<Deployment> = cluster.api();
    let left = deployments.list(&ListParams::default()).await.unwrap();
    assert!(left.items.is_empty());
    let secrets: Api<Secret> = cluster.api();
    assert!(secrets.get_opt("agentbox-auth").await.unwrap().is_some());
}
