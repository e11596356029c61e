//! The outbox on a real JetStream: order, at-least-once publishing, no duplicates.

use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::environment::{EventKind, Route};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::subjects;
use agentbox_scheduler::environment::outbox::{Outbox, outbox};
use agentbox_scheduler::environment::record::Record;
use agentbox_scheduler::environment::state::{EndReason, LifecycleEvent, transition};
use agentbox_scheduler::environment::store::{Change, Patch, Store};
use chrono::Utc;
use futures::StreamExt as _;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::support::scheduler::{bus, shared_bus};
use crate::support::{creation, database, eventually, request};

async fn step(store: &Store, before: Record, event: LifecycleEvent) -> Record {
    let now = Utc::now();
    let state = transition(now, &before.state(), &event).unwrap();
    let change = match event {
        LifecycleEvent::EndRequested(_) => Change::requested(&before, state, Duration::ZERO, now),
        _ => Change::observed(&before, state),
    };
    store.change(&before, &change, now).await.unwrap()
}

fn started() -> LifecycleEvent {
    LifecycleEvent::Started {
        address: "10.0.0.2:10777".parse().unwrap(),
        at: Utc::now(),
    }
}

/// A whole lifecycle: five events.
async fn run_lifecycle(store: &Store, wake: impl Fn(&EnvironmentId)) -> EnvironmentId {
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
    let record = step(
        store,
        record,
        LifecycleEvent::EndRequested(EndReason::Deleted),
    )
    .await;
    wake(&id);
    step(store, record, LifecycleEvent::Removed { exit_code: None }).await;
    wake(&id);
    id
}

const LIFECYCLE: [EventKind; 5] = [
    EventKind::Created,
    EventKind::Running,
    EventKind::Updated,
    EventKind::Terminating,
    EventKind::Terminated,
];

/// All events of `id`, up to the last of its lifecycle.
async fn event_kinds(bus: &Bus, id: &EnvironmentId) -> Vec<EventKind> {
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
async fn two_publishers_publish_each_event_once_and_in_order() {
    let database = database().await;
    let (one, two) = (shared_bus().await, shared_bus().await);
    let shutdown = CancellationToken::new();
    let (outbox_one, relay_one) = outbox(database.store.clone(), one.clone());
    let (outbox_two, relay_two) = outbox(database.store.clone(), two);
    let relays = [relay_one, relay_two].map(|relay| tokio::spawn(relay.run(shutdown.clone())));
    // Both are woken for every environment, so they compete for each.
    let wake = |id: &EnvironmentId| {
        outbox_one.wake(id);
        outbox_two.wake(id);
    };
    let ids = join_all((0..40).map(|_| run_lifecycle(&database.store, wake))).await;
    for id in &ids {
        assert_eq!(event_kinds(&one, id).await, LIFECYCLE, "{id}");
    }
    all_published(&database).await;
    shutdown.cancel();
    for relay in relays {
        relay.await.unwrap();
    }
}

#[tokio::test]
async fn killed_publishers_rows_are_published_by_another_and_stored_once() {
    let database = database().await;
    let bus = shared_bus().await;
    let shutdown = CancellationToken::new();
    let start = || -> (Outbox, tokio::task::JoinHandle<()>) {
        let (outbox, relay) = outbox(database.store.clone(), bus.clone());
        (outbox, tokio::spawn(relay.run(shutdown.clone())))
    };
    let ids = join_all((0..30).map(|_| async {
        // Each lifecycle has a publisher that is killed during it.
        let (outbox, relay) = start();
        let id = run_lifecycle(&database.store, |id| outbox.wake(id)).await;
        relay.abort();
        id
    }))
    .await;
    let (_, survivor) = start();
    for id in &ids {
        assert_eq!(event_kinds(&bus, id).await, LIFECYCLE, "{id}");
    }
    all_published(&database).await;
    shutdown.cancel();
    survivor.await.unwrap();
}

#[tokio::test]
async fn published_but_unmarked_rows_are_not_stored_twice() {
    let database = database().await;
    let bus = shared_bus().await;
    let shutdown = CancellationToken::new();
    let (outbox, relay) = outbox(database.store.clone(), bus.clone());
    let relay = tokio::spawn(relay.run(shutdown.clone()));
    let id = run_lifecycle(&database.store, |id| outbox.wake(id)).await;
    all_published(&database).await;
    // As if no row had been marked.
    database
        .execute("UPDATE outbox SET published_at = NULL")
        .await;
    outbox.wake(&id);
    all_published(&database).await;
    assert_eq!(event_kinds(&bus, &id).await, LIFECYCLE);
    let events = bus
        .events(subjects::environment_events(&id), 0)
        .await
        .unwrap();
    assert_eq!(events.take(LIFECYCLE.len()).count().await, LIFECYCLE.len());
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
    assert_eq!(seen, LIFECYCLE.len());
    shutdown.cancel();
    relay.await.unwrap();
}

#[tokio::test]
async fn route_is_published_with_the_environment_and_removed_with_it() {
    let database = database().await;
    let bus = shared_bus().await;
    let nats = agentbox_testing::TestNats::shared().await.unwrap();
    let gateway = self::bus(&nats, "api-gateway").await;
    let shutdown = CancellationToken::new();
    let mirror = std::sync::Arc::new(gateway.mirror_routes());
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
        mirror.get(&id) == Some(expected.clone())
    })
    .await;
    let record = step(
        &database.store,
        record,
        LifecycleEvent::EndRequested(EndReason::Expired),
    )
    .await;
    step(
        &database.store,
        record,
        LifecycleEvent::Removed { exit_code: None },
    )
    .await;
    outbox.wake(&id);
    eventually("the route is gone", Duration::from_secs(10), async || {
        mirror.get(&id).is_none()
    })
    .await;
    shutdown.cancel();
    relay.await.unwrap();
    let _ = mirroring.await;
}
