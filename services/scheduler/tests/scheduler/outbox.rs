//! The outbox over a real JetStream: order, at least once, stored once.

use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::environment::{EventKind, Route};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::subjects;
use agentbox_scheduler::environment::outbox::{Outbox, outbox};
use agentbox_scheduler::environment::record::Record;
use agentbox_scheduler::environment::state::{EndReason, Happening, transition};
use agentbox_scheduler::environment::store::{Change, Patch, Store};
use chrono::Utc;
use futures::StreamExt as _;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::support::scheduler::{bus, shared_bus};
use crate::support::{creation, database, eventually, request};

async fn step(store: &Store, before: Record, happening: Happening) -> Record {
    let now = Utc::now();
    let standing = transition(now, &before.standing(), &happening).unwrap();
    let change = match happening {
        Happening::EndWanted(_) => Change::wanted(&before, standing, Duration::ZERO, now),
        _ => Change::observed(&before, standing),
    };
    store.change(&before, &change, now).await.unwrap()
}

fn started() -> Happening {
    Happening::Started {
        address: "10.0.0.2:10777".parse().unwrap(),
        at: Utc::now(),
    }
}

/// A whole life: five events.
async fn live(store: &Store, wake: impl Fn(&EnvironmentId)) -> EnvironmentId {
    let record = store
        .create(&creation(&UserId::random(), request("life")))
        .await
        .unwrap();
    let id = record.environment.id.clone();
    wake(&id);
    let record = step(store, record, started()).await;
    wake(&id);
    let patch = Patch {
        name: Some("renamed".into()),
        ..Patch::default()
    };
    let record = store.patch(&record, &patch, Utc::now()).await.unwrap();
    wake(&id);
    let record = step(store, record, Happening::EndWanted(EndReason::Deleted)).await;
    wake(&id);
    step(store, record, Happening::Removed { exit_code: None }).await;
    wake(&id);
    id
}

const LIFE: [EventKind; 5] = [
    EventKind::Created,
    EventKind::Running,
    EventKind::Updated,
    EventKind::Terminating,
    EventKind::Terminated,
];

/// Everything the feed has of `id`, after its last event has come.
async fn feed(bus: &Bus, id: &EnvironmentId) -> Vec<EventKind> {
    let mut stream = bus
        .events(subjects::environment_events(id), 0)
        .await
        .unwrap();
    let mut kinds = Vec::new();
    while !kinds.contains(&EventKind::Terminated) {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        kinds.push(next.expect("another event").unwrap().unwrap().event.kind);
    }
    kinds
}

async fn all_published(database: &crate::support::Database) {
    eventually(
        "everything is published",
        Duration::from_secs(20),
        async || {
            database
                .number("SELECT count(*) FROM outbox WHERE published_at IS NULL")
                .await
                == 0
        },
    )
    .await;
}

#[tokio::test]
async fn each_environments_events_come_once_and_in_order_from_two_replicas() {
    let database = database().await;
    let (one, two) = (shared_bus().await, shared_bus().await);
    let shutdown = CancellationToken::new();
    let (outbox_one, relay_one) = outbox(database.store.clone(), one.clone());
    let (outbox_two, relay_two) = outbox(database.store.clone(), two);
    let relays = [relay_one, relay_two].map(|relay| tokio::spawn(relay.run(shutdown.clone())));
    // Both are told of everything, so they meet at each environment.
    let wake = |id: &EnvironmentId| {
        outbox_one.wake(id);
        outbox_two.wake(id);
    };
    let ids = join_all((0..40).map(|_| live(&database.store, wake))).await;
    for id in &ids {
        assert_eq!(feed(&one, id).await, LIFE, "{id}");
    }
    all_published(&database).await;
    shutdown.cancel();
    for relay in relays {
        relay.await.unwrap();
    }
}

#[tokio::test]
async fn what_a_killed_publisher_left_is_published_by_another_and_stored_once() {
    let database = database().await;
    let bus = shared_bus().await;
    let shutdown = CancellationToken::new();
    let start = || -> (Outbox, tokio::task::JoinHandle<()>) {
        let (outbox, relay) = outbox(database.store.clone(), bus.clone());
        (outbox, tokio::spawn(relay.run(shutdown.clone())))
    };
    let ids = join_all((0..30).map(|_| async {
        // Each life meets a publisher that is killed somewhere in it.
        let (outbox, relay) = start();
        let id = live(&database.store, |id| outbox.wake(id)).await;
        relay.abort();
        id
    }))
    .await;
    let (_, survivor) = start();
    for id in &ids {
        assert_eq!(feed(&bus, id).await, LIFE, "{id}");
    }
    all_published(&database).await;
    shutdown.cancel();
    survivor.await.unwrap();
}

#[tokio::test]
async fn what_was_published_but_not_marked_is_not_stored_twice() {
    let database = database().await;
    let bus = shared_bus().await;
    let shutdown = CancellationToken::new();
    let (outbox, relay) = outbox(database.store.clone(), bus.clone());
    let relay = tokio::spawn(relay.run(shutdown.clone()));
    let id = live(&database.store, |id| outbox.wake(id)).await;
    all_published(&database).await;
    // As if every mark had been lost.
    database
        .execute("UPDATE outbox SET published_at = NULL")
        .await;
    outbox.wake(&id);
    all_published(&database).await;
    assert_eq!(feed(&bus, &id).await, LIFE);
    let events = bus
        .events(subjects::environment_events(&id), 0)
        .await
        .unwrap();
    assert_eq!(events.take(LIFE.len()).count().await, LIFE.len());
    let mut events = bus
        .events(subjects::environment_events(&id), 0)
        .await
        .unwrap();
    let mut seen = 0;
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(2), events.next()).await {
        seen += 1;
        if event.unwrap().pending == 0 {
            break;
        }
    }
    assert_eq!(seen, LIFE.len());
    shutdown.cancel();
    relay.await.unwrap();
}

#[tokio::test]
async fn a_route_follows_the_environment_and_goes_with_it() {
    let database = database().await;
    let bus = shared_bus().await;
    let nats = agentbox_testing::TestNats::shared().await.unwrap();
    let gateway = self::bus(&nats, "api-gateway").await;
    let shutdown = CancellationToken::new();
    let mirror = std::sync::Arc::new(gateway.mirror_routes());
    let routes = mirror.table();
    let mirroring = tokio::spawn({
        let (mirror, shutdown) = (mirror.clone(), shutdown.clone());
        async move { mirror.run(shutdown).await }
    });
    let (outbox, relay) = outbox(database.store.clone(), bus);
    let relay = tokio::spawn(relay.run(shutdown.clone()));
    let record = database
        .store
        .create(&creation(&UserId::random(), request("route")))
        .await
        .unwrap();
    let id = record.environment.id.clone();
    let record = step(&database.store, record, started()).await;
    outbox.wake(&id);
    let expected = Route {
        owner: record.environment.owner.clone(),
        status: record.environment.status,
        cluster: "test".into(),
        address: record.environment.address,
    };
    eventually("the route is there", Duration::from_secs(10), async || {
        routes.get(&id) == Some(expected.clone())
    })
    .await;
    let record = step(
        &database.store,
        record,
        Happening::EndWanted(EndReason::Expired),
    )
    .await;
    step(
        &database.store,
        record,
        Happening::Removed { exit_code: None },
    )
    .await;
    outbox.wake(&id);
    eventually("the route is gone", Duration::from_secs(10), async || {
        routes.get(&id).is_none()
    })
    .await;
    shutdown.cancel();
    relay.await.unwrap();
    let _ = mirroring.await;
}
