//! The events of an instance, as an event reader and as the API see them.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use agentbox_contracts::permissions::EVENT_READER;
use agentbox_events::{Login, Start, Subscription};
use agentbox_testing::{NatsEndpoint, Options, System, eventually};
use chrono::{DateTime, SecondsFormat, Utc};
use reqwest::Method;
use serde_json::Value;

use crate::api::Api;

const DEADLINE: Duration = Duration::from_secs(120);
const WAIT: Duration = Duration::from_secs(1);
/// The example in Python of `docs/events.md`.
const EXAMPLE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../clients/events/examples/follow.py"
);

/// The ids of the events that the API lists from a time on.
async fn listed(api: &Api, from: Option<DateTime<Utc>>) -> BTreeSet<u64> {
    let (status, page) = api.served(Method::GET, "/events?limit=1000", None).await;
    assert_eq!(status, 200, "{page}");
    let events = page["events"].as_array().unwrap().iter();
    events
        .filter(|event| {
            let at: DateTime<Utc> = event["at"].as_str().unwrap().parse().unwrap();
            from.is_none_or(|from| at >= from)
        })
        .map(|event| event["id"].as_u64().unwrap())
        .collect()
}

/// The login of the reader of events.
pub fn login(system: &System) -> Login {
    let nats = system.nats.clone().unwrap();
    Login {
        url: nats.url.clone(),
        user: EVENT_READER.to_owned(),
        password: nats.passwords[EVENT_READER].clone(),
        tls_ca: nats.tls_ca,
    }
}

async fn end_one(api: &Api, name: &str) {
    let environment = api.create(name).await;
    let id = environment["id"].as_str().unwrap();
    api.wait_for_status(id, "running").await;
    api.delete(id).await;
    api.wait_for_status(id, "terminated").await;
}

#[tokio::test]
async fn event_reader_reads_the_events_that_the_api_lists_also_from_a_time() {
    let system = System::start(Options::default().without_rate_limits())
        .await
        .unwrap();
    let api = Api::of(&system).await;
    end_one(&api, "first").await;
    let login = login(&system);
    let mut events = Subscription::open(&login, Start::Oldest).await.unwrap();
    let mut read = BTreeSet::new();
    // An event is published a moment after its change.
    eventually("all events", DEADLINE, async || {
        while let Some(received) = events.next(WAIT).await.unwrap() {
            received.acknowledge().await.unwrap();
            read.insert(received.sequence);
        }
        read.len() >= 4 && read == listed(&api, None).await
    })
    .await;
    let time = Utc::now();
    end_one(&api, "second").await;
    events.replay(Start::At(time)).await.unwrap();
    let mut replayed = BTreeSet::new();
    eventually("the events from the time on", DEADLINE, async || {
        while let Some(received) = events.next(WAIT).await.unwrap() {
            received.acknowledge().await.unwrap();
            replayed.insert(received.sequence);
        }
        replayed.len() >= 4 && replayed == listed(&api, Some(time)).await
    })
    .await;
    assert!(read.is_disjoint(&replayed));
    system.stop().await;
}

/// The example in Python while it runs, and the ids of the events that it has printed.
struct Example {
    process: Child,
    printed: Arc<Mutex<BTreeSet<u64>>>,
    reader: JoinHandle<()>,
}

impl Example {
    fn start(nats: &NatsEndpoint, arguments: &[&str]) -> Self {
        // Killed with the test, however the test ends.
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "python3", EXAMPLE])
            .args(arguments)
            .env("AGENTBOX_EVENTS_URL", &nats.url)
            .env("AGENTBOX_EVENTS_USER", EVENT_READER)
            .env("AGENTBOX_EVENTS_PASSWORD", &nats.passwords[EVENT_READER])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let printed = Arc::new(Mutex::new(BTreeSet::new()));
        let ids = printed.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap();
                let id = event["sequence"].as_u64().unwrap();
                ids.lock().unwrap().insert(id);
            }
        });
        Self {
            process,
            printed,
            reader,
        }
    }

    fn printed(&self) -> BTreeSet<u64> {
        self.printed.lock().unwrap().clone()
    }

    /// SIGKILL. Returns what was printed.
    fn kill(self) -> BTreeSet<u64> {
        let Self {
            mut process,
            printed,
            reader,
        } = self;
        let ended = process.try_wait().unwrap();
        assert!(ended.is_none(), "the example ended by itself: {ended:?}");
        process.kill().unwrap();
        process.wait().unwrap();
        reader.join().unwrap();
        let printed = printed.lock().unwrap();
        printed.clone()
    }
}

#[tokio::test]
#[ignore = "needs nats-py: make test-events"]
async fn example_in_python_reads_the_events_that_the_api_lists_when_it_and_nats_are_killed() {
    let found = Command::new("python3").args(["-c", "import nats"]).status();
    assert!(
        found.unwrap().success(),
        "python3 finds no nats-py; `make test-events` installs it"
    );
    let system = System::start(Options::default().without_rate_limits())
        .await
        .unwrap();
    let api = Api::of(&system).await;
    let nats = system.nats.clone().unwrap();
    let example = Example::start(&nats, &[]);
    end_one(&api, "first").await;
    eventually("all events", DEADLINE, async || {
        let printed = example.printed();
        printed.len() >= 4 && printed == listed(&api, None).await
    })
    .await;
    let mut read = example.kill();

    let example = Example::start(&nats, &[]);
    end_one(&api, "second").await;
    eventually("the example reads", DEADLINE, async || {
        !example.printed().is_empty()
    })
    .await;
    let later = example.kill();
    // It began at the position. The last event may have been printed and not acknowledged.
    assert!(later.first() >= read.last(), "{later:?} after {read:?}");
    read.extend(later);

    // This one outlives NATS. It also reads the events that the one before had not acknowledged.
    let example = Example::start(&nats, &[]);
    eventually("NATS is killed", DEADLINE, async || system.kill("nats", 0)).await;
    end_one(&api, "third").await;
    eventually("all events", DEADLINE, async || {
        let all: BTreeSet<u64> = read.union(&example.printed()).copied().collect();
        all.len() >= 12 && all == listed(&api, None).await
    })
    .await;
    example.kill();

    let time = Utc::now();
    let from = time.to_rfc3339_opts(SecondsFormat::Micros, true);
    let example = Example::start(&nats, &["--replay-from", &from]);
    end_one(&api, "fourth").await;
    eventually("the events from the time on", DEADLINE, async || {
        let replayed = example.printed();
        replayed.len() >= 4 && replayed == listed(&api, Some(time)).await
    })
    .await;
    example.kill();
    system.stop().await;
}
