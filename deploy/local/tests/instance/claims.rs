//! Environments in boxes of a warm pool: by the API, and while services are killed (SIGKILL).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use agentbox_events::{Start, Subscription};
use agentbox_testing::{Options, System, eventually, eventually_some};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, small};
use crate::events::login;
use crate::host::{Supervised, leftover_boxes, leftovers_of_ended};
use crate::kills::{kill, status};

pub const POOL: &str = "/pools/claims";
/// Longer than the lease of a killed scheduler on the boxes that it was starting.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// The ready boxes of the pool.
const BOXES: u64 = 8;
const CLIENTS: usize = 4;
/// The environments that get a ready box while services are killed.
const CLAIMS: usize = 50;
/// How often a create is tried. A machine that stalls may not answer a claim in time.
const ATTEMPTS: usize = 3;

/// Defines a pool of the boxes of [`small`].
pub async fn define_pool(api: &Api, boxes: u64) {
    let request = small("pool");
    let pool = json!({
        "image": request["image"],
        "resources": request["resources"],
        "min_ready": boxes,
        "max_ready": boxes,
    });
    let (code, answer) = api.served(Method::PUT, POOL, Some(pool)).await;
    // A request that was not served may have defined it.
    assert!(matches!(code, 200 | 201), "{code}: {answer}");
}

/// The pool at `path`, when it has `boxes` ready ones, or more by its demand.
async fn ready_pool(api: &Api, path: &str, boxes: u64) -> Value {
    eventually_some("the pool has its boxes", DEADLINE, async || {
        let (code, pool) = api.once(Method::GET, path, None).await;
        let ready = pool["status"]["ready"].as_u64();
        (code == 200 && ready >= Some(boxes)).then_some(pool)
    })
    .await
}

/// Creates environments until one gets a ready box of the pool at `path`. Returns it, and the ids of all.
pub async fn create_in_ready_box(
    api: &Api,
    path: &str,
    boxes: u64,
    body: &Value,
) -> (Value, Vec<String>) {
    let mut created = Vec::new();
    let name = body["name"].as_str().unwrap();
    loop {
        let pool = ready_pool(api, path, boxes).await;
        let hit = json!({ "name": pool["name"], "hit": true });
        let key = format!("{name}-{}", created.len());
        let answer = api.post_once("/environments", body.clone(), &key).await;
        created.push(answer["id"].as_str().unwrap().to_owned());
        if answer["status"] == "running" && answer["pool"] == hit {
            return (answer, created);
        }
        assert!(created.len() < ATTEMPTS, "{answer}");
    }
}

pub async fn delete_pool(api: &Api, system: &System) {
    let (code, answer) = api.served(Method::DELETE, POOL, None).await;
    // A request that was not served may have deleted it.
    assert!(matches!(code, 204 | 404), "{code}: {answer}");
    let containerd = system.containerd.clone().unwrap();
    eventually("no box is left", DEADLINE, async || {
        leftover_boxes(&containerd).await.is_empty()
    })
    .await;
}

/// Checks that the events of running `environments` have their use of the pool: as the API lists them, and as
/// a reader of events receives them.
async fn expect_pool_in_events(api: &Api, system: &System, environments: &[&Value]) {
    let of = |events: &[Value], environment: &Value| -> Vec<Value> {
        let events = events.iter();
        let own = events.filter(|event| event["environment_id"] == environment["id"]);
        own.cloned().collect()
    };
    let is_complete = |events: &[Value]| {
        environments.iter().all(|environment| {
            let own = of(events, environment);
            let has = |kind: &str| own.iter().any(|event| event["kind"] == kind);
            has("created") && has("running")
        })
    };
    let listed = eventually_some("their events are listed", DEADLINE, async || {
        let (code, page) = api.once(Method::GET, "/events?limit=1000", None).await;
        let events = page["events"].as_array().cloned().unwrap_or_default();
        (code == 200 && is_complete(&events)).then_some(events)
    })
    .await;
    let login = login(system);
    let mut events = Subscription::open(&login, Start::Oldest).await.unwrap();
    let mut received: Vec<Value> = Vec::new();
    while !is_complete(&received) {
        let next = events.next(DEADLINE).await.unwrap().expect("another event");
        next.acknowledge().await.unwrap();
        received.push(serde_json::to_value(&next.event).unwrap());
    }
    for environment in environments {
        for event in [of(&listed, environment), of(&received, environment)].concat() {
            assert_eq!(event["pool"], environment["pool"], "{event}");
        }
    }
}

#[tokio::test]
async fn create_that_matches_a_pool_is_answered_with_a_running_environment() {
    let system = System::start(Options::default().without_rate_limits())
        .await
        .unwrap();
    let api = Api::of(&system).await;
    define_pool(&api, 1).await;
    let mut body = small("claimed");
    body["env"] = json!({ "WHO": "me" });
    let (claimed, mut created) = create_in_ready_box(&api, POOL, 1, &body).await;
    let id = claimed["id"].as_str().unwrap();
    let who = api.exec(id, "echo $WHO").await;
    assert_eq!(who["stdout"], "me\n", "{who}");
    assert_eq!(api.get(id).await["pool"], claimed["pool"]);

    let mut larger = small("larger");
    larger["resources"]["memory"] = "96Mi".into();
    let cold = api.create_as(larger).await;
    let miss = json!({ "name": "claims", "hit": false, "reason": "resources" });
    assert_eq!(cold["pool"], miss, "{cold}");
    created.push(cold["id"].as_str().unwrap().to_owned());
    let pool = ready_pool(&api, POOL, 1).await;
    let counts = &pool["status"];
    assert!(counts["hits"].as_u64().unwrap() >= 1, "{pool}");
    assert_eq!(counts["misses_by_reason"]["resources"], 1, "{pool}");
    assert_eq!(counts["claims"], created.len(), "{pool}");

    for id in &created {
        api.wait_for_status(id, "running").await;
    }
    expect_pool_in_events(&api, &system, &[&claimed, &cold]).await;
    for id in &created {
        api.delete(id).await;
    }
    delete_pool(&api, &system).await;
    system.stop().await;
}

#[tokio::test]
async fn first_create_on_a_new_instance_gets_one_of_two_ready_boxes() {
    let directory = tempfile::tempdir().unwrap();
    let deployment = format!("local-{:08x}", rand::random::<u32>());
    let mut supervised = Supervised::start_as_up(directory.path(), &deployment);
    let api = supervised.api().await;
    // The request of the API guide.
    let body = json!({
        "name": "my-python-env",
        "image": "python:3.11-slim",
        "resources": { "cpu": "500m", "memory": "512Mi", "storage": "1Gi" },
        "timeout": 3600,
        "env": { "MY_VAR": "my-value" },
    });
    let (claimed, created) = create_in_ready_box(&api, "/pools/python", 2, &body).await;
    let script = "python -c 'import os; print(os.environ[\"MY_VAR\"])'";
    let printed = api.exec(claimed["id"].as_str().unwrap(), script).await;
    assert_eq!(printed["stdout"], "my-value\n", "{printed}");
    let (code, refused) = api.served(Method::DELETE, "/pools/python", None).await;
    assert_eq!(code, 409, "{refused}");
    for id in &created {
        api.delete(id).await;
        api.wait_for_status(id, "terminated").await;
    }
    supervised.test_program.kill().unwrap();
    supervised.wait();
}

/// The clients' progress, by which the test selects the time of a kill.
#[derive(Default)]
struct Progress {
    creating: Cell<usize>,
    /// Environments that got a ready box.
    hits: Cell<usize>,
    is_over: Cell<bool>,
    created: RefCell<Vec<String>>,
}

impl Progress {
    async fn wait_until(&self, expected: &str, condition: impl Fn(&Self) -> bool) {
        eventually(expected, DEADLINE, async || condition(self)).await;
    }

    async fn wait_for_hits(&self, hits: usize) {
        self.wait_until("ready boxes are claimed", |now| now.hits.get() >= hits)
            .await;
    }

    async fn work(&self, api: &Api, client: usize) {
        let mut round = 0;
        while !self.is_over.get() {
            round += 1;
            let name = format!("c{client}-r{round}");
            let mut body = small(&name);
            body["env"] = json!({ "WHO": name });
            self.creating.set(self.creating.get() + 1);
            let created = api.create_as(body).await;
            self.creating.set(self.creating.get() - 1);
            let id = created["id"].as_str().unwrap().to_owned();
            self.created.borrow_mut().push(id.clone());
            let running = api.wait_for_status(&id, "running").await;
            if running["pool"]["hit"] == true {
                self.hits.set(self.hits.get() + 1);
            }
            // Another environment in the same box would have left its name.
            let names = api.exec(&id, "echo \"$WHO\" >> /mark; sort -u /mark").await;
            assert_eq!(names["stdout"], format!("{name}\n"), "{names}");
            api.delete(&id).await;
        }
    }
}

#[tokio::test]
async fn killed_scheduler_and_exec_proxy_during_claims_hand_out_nothing_twice_and_lose_nothing() {
    let system = System::start(Options::default().replicas(2).without_rate_limits())
        .await
        .unwrap();
    let api = Api::of(&system).await;
    define_pool(&api, BOXES).await;
    ready_pool(&api, POOL, BOXES).await;
    let progress = Progress::default();
    let clients = join_all((0..CLIENTS).map(|client| progress.work(&api, client)));
    let killing = async {
        for (service, index) in [
            ("scheduler", 0),
            ("exec-proxy", 0),
            ("scheduler", 1),
            ("exec-proxy", 1),
        ] {
            progress
                .wait_for_hits(progress.hits.get() + CLAIMS / 5)
                .await;
            progress
                .wait_until("a create is in progress", |now| now.creating.get() > 0)
                .await;
            let back = kill(&system, service, index).await;
            println!("{service}-{index} killed, all ready after {back:?}");
        }
        progress.wait_for_hits(CLAIMS).await;
        progress.is_over.set(true);
    };
    tokio::join!(clients, killing);

    let created = progress.created.take();
    let hits = progress.hits.get();
    println!(
        "{} environments, {hits} in ready boxes, {} retried requests",
        created.len(),
        api.retries.get()
    );
    let distinct: BTreeSet<&String> = created.iter().collect();
    assert_eq!(distinct.len(), created.len(), "each has a box of its own");
    for id in &created {
        let ended = api.wait_for_status(id, "terminated").await;
        assert_eq!(ended["status_reason"], "DELETED", "{ended}");
    }
    let listed = api.list().await;
    assert_eq!(listed["total"], created.len(), "each was created once");
    let pool = ready_pool(&api, POOL, BOXES).await;
    assert_eq!(pool["status"]["hits"], hits, "{pool}");
    assert_eq!(pool["status"]["claims"], created.len(), "{pool}");
    delete_pool(&api, &system).await;
    let report = status(&system);
    let killed = report
        .lines()
        .filter(|line| line.contains("ready; last exit: signal: 9"))
        .count();
    assert_eq!(killed, 4, "{report}");
    let containerd = system.containerd.clone().unwrap();
    system.stop().await;
    assert_eq!(leftovers_of_ended(&containerd), Vec::<String>::new());
}
