//! Subscriptions on a real NATS server. Needs `cargo build -p agentbox-local` once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is a test; its helpers fail it by panicking"
)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::environment::{EnvironmentEvent, EventKind, Status};
use agentbox_contracts::ids::{EnvironmentId, InstanceId, UserId};
use agentbox_contracts::permissions::EVENT_READER;
use agentbox_events::{Login, Received, Start, Subscription};
use agentbox_testing::{NatsEndpoint, TestNats, eventually};
use chrono::Utc;
use serde_json::Value;

/// Longer than two times after which an event is delivered again.
const DEADLINE: Duration = Duration::from_secs(120);
const WAIT: Duration = Duration::from_secs(2);

fn login(nats: &NatsEndpoint) -> Login {
    Login {
        url: nats.url.clone(),
        user: EVENT_READER.to_owned(),
        password: nats.passwords[EVENT_READER].clone(),
        tls_ca: None,
    }
}

async fn scheduler(nats: &NatsEndpoint) -> Bus {
    Bus::connect(BusConfig {
        url: nats.url.clone(),
        tls_ca: nats.tls_ca.clone(),
        user: "scheduler".to_owned(),
        password: nats.passwords["scheduler"].clone(),
        service: "scheduler",
        instance: InstanceId::random(),
    })
    .await
    .unwrap()
}

/// Publishes an event, also while NATS starts. Returns its message id.
async fn publish(scheduler: &Bus) -> String {
    let event = EnvironmentEvent {
        environment_id: EnvironmentId::random(),
        owner: UserId::random(),
        kind: EventKind::Created,
        status: Status::Pending,
        status_reason: None,
        status_message: None,
        exit_code: None,
        pool: None,
        execution: None,
        at: Utc::now(),
    };
    let id = event.environment_id.to_string();
    eventually("the event is published", DEADLINE, async || {
        scheduler.publish_event(&event, &id).await.is_ok()
    })
    .await;
    id
}

async fn next(events: &mut Subscription) -> Received {
    let mut found = None;
    eventually("an event", DEADLINE, async || {
        found = events.next(WAIT).await.unwrap_or_default();
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn event_is_delivered_again_until_it_is_acknowledged() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let scheduler = scheduler(&nats).await;
    let first = publish(&scheduler).await;
    let mut events = Subscription::open(&login(&nats), Start::Oldest)
        .await
        .unwrap();
    assert_eq!(next(&mut events).await.id, first);
    drop(events);
    let mut events = Subscription::open(&login(&nats), Start::New).await.unwrap();
    let again = next(&mut events).await;
    assert_eq!(again.id, first);
    again.acknowledge().await.unwrap();
    let second = publish(&scheduler).await;
    assert_eq!(next(&mut events).await.id, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_begins_at_the_time() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let scheduler = scheduler(&nats).await;
    publish(&scheduler).await;
    let time = Utc::now();
    let later = [publish(&scheduler).await, publish(&scheduler).await];
    let mut events = Subscription::open(&login(&nats), Start::Oldest)
        .await
        .unwrap();
    for _ in 0..3 {
        next(&mut events).await.acknowledge().await.unwrap();
    }
    for _ in 0..2 {
        events.replay(Start::At(time)).await.unwrap();
        for expected in &later {
            let received = next(&mut events).await;
            assert_eq!(received.id, *expected);
            received.acknowledge().await.unwrap();
        }
    }
    events.replay(Start::Oldest).await.unwrap();
    assert_eq!(next(&mut events).await.sequence, 1);
}

/// The program, and the ids that it has printed.
struct Reader {
    process: Child,
}

impl Reader {
    fn start(nats: &NatsEndpoint, printed: &Arc<Mutex<BTreeSet<String>>>) -> Self {
        // Killed with the test, however the test ends.
        let mut process = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                env!("CARGO_BIN_EXE_agentbox-events"),
            ])
            .env("AGENTBOX_EVENTS_URL", &nats.url)
            .env("AGENTBOX_EVENTS_USER", EVENT_READER)
            .env("AGENTBOX_EVENTS_PASSWORD", &nats.passwords[EVENT_READER])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let printed = printed.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap();
                let id = event["id"].as_str().unwrap().to_owned();
                printed.lock().unwrap().insert(id);
            }
        });
        Self { process }
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_received_when_the_reader_and_nats_are_killed() {
    let (system, nats) = TestNats::own().await.unwrap();
    let scheduler = scheduler(&nats).await;
    let printed = Arc::new(Mutex::new(BTreeSet::new()));
    let mut published = BTreeSet::new();
    for round in 0..4 {
        let before = printed.lock().unwrap().len();
        let reader = Reader::start(&nats, &printed);
        for _ in 0..20 {
            published.insert(publish(&scheduler).await);
        }
        eventually("the reader has begun", DEADLINE, async || {
            printed.lock().unwrap().len() > before
        })
        .await;
        if round % 2 == 1 {
            // The supervisor may not have written yet that NATS was restarted.
            eventually("NATS is killed", DEADLINE, async || system.kill("nats", 0)).await;
        }
        reader.kill();
    }
    let reader = Reader::start(&nats, &printed);
    eventually("every event is received", DEADLINE, async || {
        *printed.lock().unwrap() == published
    })
    .await;
    reader.kill();
}
