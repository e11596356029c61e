//! The events of an instance, as an event reader and as the API see them.

use std::collections::BTreeSet;
use std::time::Duration;

use agentbox_contracts::permissions::EVENT_READER;
use agentbox_events::{Login, Start, Subscription};
use agentbox_testing::{Options, System, eventually};
use chrono::{DateTime, Utc};
use reqwest::Method;

use crate::api::Api;

const DEADLINE: Duration = Duration::from_secs(120);
const WAIT: Duration = Duration::from_secs(1);

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
