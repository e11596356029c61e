//! Kills every process of the system (SIGKILL) under load: the system recovers, and no
//! environment is lost or created twice.

use std::cell::{Cell, RefCell};
use std::process::Command;
use std::time::{Duration, Instant};

use agentbox_testing::{Options, System};
use futures::future::join_all;
use serde_json::Value;

use crate::api::Api;
use crate::host::{leftover_boxes, leftovers_of_ended};

const CLIENTS: usize = 4;
const RESTART_DEADLINE: Duration = Duration::from_secs(30);

/// The clients' progress, by which the test selects the time of a kill.
#[derive(Default)]
struct Progress {
    starting: Cell<usize>,
    executing: Cell<usize>,
    rounds: Cell<usize>,
    is_over: Cell<bool>,
    created: RefCell<Vec<String>>,
}

/// The time of a kill.
#[derive(Clone, Copy, Debug)]
enum Point {
    WhileEnvironmentsStart,
    WhileCommandsRun,
}

impl Progress {
    async fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "not reached: {what}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn wait_for(&self, point: Point) {
        self.wait_until(&format!("{point:?}"), |now| match point {
            Point::WhileEnvironmentsStart => now.starting.get() > 0,
            Point::WhileCommandsRun => now.executing.get() > 1,
        })
        .await;
    }

    /// Waits until every client has completed a workflow that started after this call.
    async fn wait_for_progress(&self) {
        let enough = self.rounds.get() + 2 * CLIENTS;
        self.wait_until("the clients make progress", |now| {
            now.rounds.get() >= enough
        })
        .await;
    }

    async fn work(&self, api: &Api, client: usize) {
        let mut round = 0;
        while !self.is_over.get() {
            round += 1;
            self.starting.set(self.starting.get() + 1);
            let created = api.create(&format!("c{client}-r{round}")).await;
            let id = created["id"].as_str().unwrap().to_owned();
            self.created.borrow_mut().push(id.clone());
            api.wait_for_status(&id, "running").await;
            self.starting.set(self.starting.get() - 1);
            for word in ["one", "two"] {
                self.executing.set(self.executing.get() + 1);
                let result = api
                    .exec(&id, &format!("sleep 0.2; echo {word}; exit 7"))
                    .await;
                self.executing.set(self.executing.get() - 1);
                assert_eq!(result["exit_code"], 7, "{result}");
                assert_eq!(result["stdout"], format!("{word}\n"), "{result}");
            }
            api.delete(&id).await;
            self.rounds.set(self.rounds.get() + 1);
        }
    }
}

/// Kills a process, and waits until it is restarted and the system is ready.
pub async fn kill(system: &System, part: &str, index: usize) -> Duration {
    let before = system.pids(part)[&index];
    let begun = Instant::now();
    assert!(system.kill(part, index));
    while system
        .pids(part)
        .get(&index)
        .is_none_or(|pid| *pid == before)
    {
        assert!(
            begun.elapsed() < RESTART_DEADLINE,
            "{part}-{index} is not restarted"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    system.wait_ready(RESTART_DEADLINE).await.unwrap();
    begun.elapsed()
}

/// The output of `make status`.
pub fn status(system: &System) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_agentbox-local"))
        .arg("--dir")
        .arg(system.directory())
        .arg("status")
        .output()
        .unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "a process is not ready:\n{report}");
    report
}

#[tokio::test]
async fn killed_services_under_load_lose_and_duplicate_no_environment() {
    let system = System::start(Options::default().replicas(2).without_rate_limits())
        .await
        .unwrap();
    let api = Api::of(&system).await;
    let progress = Progress::default();
    let clients = join_all((0..CLIENTS).map(|client| progress.work(&api, client)));
    let killing = async {
        for (service, point) in [
            ("scheduler", Point::WhileEnvironmentsStart),
            ("exec-proxy", Point::WhileCommandsRun),
            ("auth", Point::WhileEnvironmentsStart),
            ("api-gateway", Point::WhileCommandsRun),
        ] {
            for index in 0..2 {
                progress.wait_for(point).await;
                let back = kill(&system, service, index).await;
                println!("{service}-{index} killed {point:?}, all ready after {back:?}");
                progress.wait_for_progress().await;
            }
        }
        progress.is_over.set(true);
    };
    tokio::join!(clients, killing);

    let mut created = progress.created.take();
    println!(
        "{} environments, {} retried requests",
        created.len(),
        api.retries.get()
    );
    for id in &created {
        let ended = api.wait_for_status(id, "terminated").await;
        assert_eq!(ended["status_reason"], "DELETED", "{ended}");
    }
    let listed = api.list().await;
    let mut known: Vec<String> = listed["environments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|environment| environment["id"].as_str().unwrap().to_owned())
        .collect();
    created.sort();
    known.sort();
    assert_eq!(known, created, "each was created once, and none is lost");
    let containerd = system.containerd.clone().unwrap();
    assert_eq!(leftover_boxes(&containerd).await, Vec::<String>::new());
    let report = status(&system);
    let killed = report
        .lines()
        .filter(|line| line.contains("ready; last exit: signal: 9"))
        .count();
    assert_eq!(killed, 8, "{report}");
    system.stop().await;
    assert_eq!(leftovers_of_ended(&containerd), Vec::<String>::new());
}

#[tokio::test]
async fn killed_store_or_containerd_recovers_while_boxes_keep_running() {
    let system = System::start(Options::default().replicas(2).without_rate_limits())
        .await
        .unwrap();
    let api = Api::of(&system).await;
    let lasting = api.create("lasting").await;
    let id = lasting["id"].as_str().unwrap().to_owned();
    let running = api.wait_for_status(&id, "running").await;
    let mark = api
        .exec(&id, "cat /proc/sys/kernel/random/uuid | tee /mark")
        .await;
    for part in ["nats", "postgres", "containerd"] {
        let back = kill(&system, part, 0).await;
        let begun = Instant::now();
        let result = api.exec(&id, "cat /mark").await;
        println!(
            "{part} killed: all ready after {back:?}, exec answers {:?} later",
            begun.elapsed()
        );
        assert_eq!(result["stdout"], mark["stdout"], "the same box: {result}");
        let still = api.get(&id).await;
        for field in ["status", "started_at", "endpoint"] {
            assert_eq!(still[field], running[field], "{part}: {still}");
        }
        create_use_delete(&api, part).await;
        assert!(status(&system).contains("last exit: signal: 9"));
    }
    api.delete(&id).await;
    api.wait_for_status(&id, "terminated").await;
    let containerd = system.containerd.clone().unwrap();
    assert_eq!(leftover_boxes(&containerd).await, Vec::<String>::new());
    system.stop().await;
    assert_eq!(leftovers_of_ended(&containerd), Vec::<String>::new());
}

async fn create_use_delete(api: &Api, name: &str) {
    let created: Value = api.create(&format!("after-{name}")).await;
    let id = created["id"].as_str().unwrap().to_owned();
    api.wait_for_status(&id, "running").await;
    let result = api.exec(&id, "echo here; exit 3").await;
    assert_eq!(
        (&result["stdout"], &result["exit_code"]),
        (&"here\n".into(), &3.into())
    );
    api.delete(&id).await;
    api.wait_for_status(&id, "terminated").await;
}
