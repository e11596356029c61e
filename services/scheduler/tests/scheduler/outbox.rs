//! The outbox on a real JetStream: order, at-least-once publishing, no duplicates.

use std::time::Duration;

use agentbox_bus::{Bus, with_origin};
use agentbox_contracts::audit::{AuditAction, AuditEntry, Origin};
use agentbox_contracts::environment::{EventKind, Route};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::subjects;
use agentbox_runtime::RegistryCredential;
use agentbox_scheduler::environment::outbox::{Outbox, outbox};
use agentbox_scheduler::environment::record::Record;
use agentbox_scheduler::environment::state::{EndReason, LifecycleEvent, transition};
use agentbox_scheduler::environment::store::{Change, ClaimAction, Patch, Store};
use agentbox_testing::TestNats;
use chrono::Utc;
use futures::StreamExt as _;
use futures::future::join_all;
use nix::sys::signal::Signal;
use sea_orm::ConnectionTrait as _;
use tokio_util::sync::CancellationToken;

use crate::support::scheduler::{bus, shared_bus};
use crate::support::{concurrently, creation, database, eventually, request};

/// The connections of a publisher that works beside the test. A publisher alone can use all of a
/// pool, and a statement that waits for a connection for 2 s fails.
const PUBLISHER: u32 = 2;

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
    let (outbox_one, relay_one) = outbox(database.replica(PUBLISHER).await, one.clone());
    let (outbox_two, relay_two) = outbox(database.replica(PUBLISHER).await, two);
    let relays = [relay_one, relay_two].map(|relay| tokio::spawn(relay.run(shutdown.clone())));
    // Both are woken for every environment, so they compete for each.
    let wake = |id: &EnvironmentId| {
        outbox_one.wake(id);
        outbox_two.wake(id);
    };
    let ids = concurrently(40, |_| run_lifecycle(&database.store, wake)).await;
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
    let start = async || -> (Outbox, tokio::task::JoinHandle<()>) {
        let (outbox, relay) = outbox(database.replica(PUBLISHER).await, bus.clone());
        (outbox, tokio::spawn(relay.run(shutdown.clone())))
    };
    let ids = concurrently(30, async |_| {
        // Each lifecycle has a publisher that is killed during it.
        let (outbox, relay) = start().await;
        let id = run_lifecycle(&database.store, |id| outbox.wake(id)).await;
        relay.abort();
        id
    })
    .await;
    let (_, survivor) = start().await;
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
    // As after a publisher that was killed before it marked any row.
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
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(20), events.next()).await {
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
async fn bus_that_does_not_answer_holds_no_connection_or_lock() {
    const ENVIRONMENTS: usize = 8;
    let database = database().await;
    let (system, nats) = TestNats::own().await.unwrap();
    let bus = self::bus(&nats, "scheduler").await;
    let shutdown = CancellationToken::new();
    let (outbox, relay) = outbox(database.store.clone(), bus.clone());
    let relay = tokio::spawn(relay.run(shutdown.clone()));
    assert!(system.signal("nats", 0, Signal::SIGSTOP));
    // The lifecycles have connections of their own: the publisher alone can use all of its pool.
    let store = database.replica(8).await;
    let ids = join_all((0..ENVIRONMENTS).map(|_| run_lifecycle(&store, |id| outbox.wake(id))));
    let ids = ids.await;
    // The pool is read first, because the test's own query returns its connection late.
    let pool = database.connection.get_postgres_connection_pool();
    let claimed = "SELECT count(*) FROM outbox_leases WHERE holder IS NOT NULL";
    eventually(
        "a claim without a connection",
        Duration::from_secs(30),
        async || pool.num_idle() == pool.size() as usize && database.number(claimed).await > 0,
    )
    .await;
    let held = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND state LIKE 'idle in transaction%'";
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    for _ in 0..50 {
        assert_eq!(database.number(held).await, 0);
        assert_eq!(database.number(locks).await, 0);
    }
    assert!(system.signal("nats", 0, Signal::SIGCONT));
    for id in &ids {
        assert_eq!(event_kinds(&bus, id).await, LIFECYCLE, "{id}");
    }
    all_published(&database).await;
    shutdown.cancel();
    relay.await.unwrap();
}

#[tokio::test]
async fn publisher_killed_before_its_mark_publishes_again_with_the_same_id() {
    let database = database().await;
    let bus = shared_bus().await;
    let shutdown = CancellationToken::new();
    let record = database
        .store
        .create(&creation(&UserId::random(), request("killed")))
        .await
        .unwrap();
    let id = record.environment.id.clone();
    // Rows can be read and published, but not marked.
    let lock = agentbox_database::begin(&database.connection)
        .await
        .unwrap();
    lock.execute_unprepared("SELECT FROM outbox FOR UPDATE")
        .await
        .unwrap();
    let (outbox_one, relay) = outbox(database.store.clone(), bus.clone());
    let killed = tokio::spawn(relay.run(shutdown.clone()));
    outbox_one.wake(&id);
    let waiting = "FROM pg_stat_activity WHERE datname = current_database()
        AND wait_event_type = 'Lock'";
    eventually("the mark waits", Duration::from_secs(10), async || {
        let count = format!("SELECT count(*) {waiting}");
        database.number(&count).await == 1
    })
    .await;
    killed.abort();
    // Postgres notices a killed client late; its statement must not succeed.
    let terminate = format!("SELECT pg_terminate_backend(pid) {waiting}");
    database.execute(&terminate).await;
    lock.rollback().await.unwrap();
    let unpublished = "SELECT count(*) FROM outbox WHERE published_at IS NULL";
    assert_eq!(database.number(unpublished).await, 2);
    let mut published = bus
        .events(subjects::environment_events(&id), 0)
        .await
        .unwrap();
    let first = published.next().await.unwrap().unwrap();
    assert_eq!(first.event.kind, EventKind::Created);

    let (outbox_two, relay) = outbox(database.store.clone(), bus.clone());
    let survivor = tokio::spawn(relay.run(shutdown.clone()));
    all_published(&database).await;
    let deleted = LifecycleEvent::EndRequested(EndReason::Deleted);
    let record = step(&database.store, record, deleted).await;
    let removed = LifecycleEvent::Removed { exit_code: None };
    step(&database.store, record, removed).await;
    outbox_two.wake(&id);
    assert_eq!(
        event_kinds(&bus, &id).await,
        [
            EventKind::Created,
            EventKind::Terminating,
            EventKind::Terminated
        ]
    );
    shutdown.cancel();
    survivor.await.unwrap();
}

#[tokio::test]
async fn outbox_claim_has_one_holder_until_released_or_expired() {
    let database = database().await;
    let store = &database.store;
    let id = EnvironmentId::random();
    let claims = join_all((0..8).map(|n| {
        let (store, id) = (store.clone(), id.clone());
        async move { store.claim_outbox(&id, &n.to_string()).await.unwrap() }
    }))
    .await;
    let holder = claims.iter().position(|claimed| *claimed).unwrap();
    assert_eq!(claims.iter().filter(|claimed| **claimed).count(), 1);
    let holder = holder.to_string();
    let mark = |holder: String, claim| {
        let (store, id) = (store.clone(), id.clone());
        async move {
            store
                .mark_published(&id, &holder, &[], claim)
                .await
                .unwrap()
        }
    };
    // The refused claims requeued the environment once.
    assert!(mark(holder.clone(), ClaimAction::RenewIfRequeued).await);
    assert!(mark(holder.clone(), ClaimAction::Renew).await);
    assert!(!mark(holder.clone(), ClaimAction::RenewIfRequeued).await);
    assert!(store.claim_outbox(&id, "next").await.unwrap());
    assert!(!store.claim_outbox(&id, "refused").await.unwrap());
    // A publisher that failed releases its claim although it was requeued.
    assert!(!mark("next".into(), ClaimAction::Release).await);
    assert!(store.claim_outbox(&id, "killed").await.unwrap());
    database
        .execute("UPDATE outbox_leases SET expires_at = now()")
        .await;
    assert!(store.claim_outbox(&id, "after").await.unwrap());
    assert!(!mark("killed".into(), ClaimAction::Renew).await);
    assert!(mark("after".into(), ClaimAction::Renew).await);
}

#[tokio::test]
async fn route_is_published_with_the_environment_and_removed_with_it() {
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
    eventually(
        "the route is published",
        Duration::from_secs(10),
        async || routes.get(&id) == Some(expected.clone()),
    )
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
    eventually(
        "the route is removed",
        Duration::from_secs(10),
        async || routes.get(&id).is_none(),
    )
    .await;
    shutdown.cancel();
    relay.await.unwrap();
    let _ = mirroring.await;
}

/// Waits until everything is published, and returns the audit entries that auth receives.
async fn published_entries(database: &crate::support::Database, auth: &Bus) -> Vec<AuditEntry> {
    all_published(database).await;
    let queued = auth.audit_queue().pull(10, Duration::from_secs(1)).await;
    let queued = queued.unwrap().into_iter();
    queued.map(|queued| queued.entry).collect()
}

#[tokio::test]
async fn changes_that_a_request_asked_for_have_one_audit_entry_each() {
    let database = database().await;
    let (_system, nats) = TestNats::own().await.unwrap();
    let auth = bus(&nats, "auth").await;
    let scheduler = bus(&nats, "scheduler").await;
    let (outbox, relay) = outbox(database.store.clone(), scheduler);
    let shutdown = CancellationToken::new();
    let relaying = tokio::spawn(relay.run(shutdown.clone()));
    let wake = |id: &EnvironmentId| outbox.wake(id);
    // Background work has no entry.
    run_lifecycle(&database.store, wake).await;
    let origin = Origin {
        user: Some(UserId::random()),
        address: "192.0.2.1".parse().ok(),
        ..Origin::default()
    };
    let id = with_origin(origin.clone(), run_lifecycle(&database.store, wake)).await;
    let entries = published_entries(&database, &auth).await;
    let actions: Vec<AuditAction> = entries.iter().map(|entry| entry.action).collect();
    assert_eq!(
        actions,
        [
            AuditAction::CreateEnvironment,
            AuditAction::PatchEnvironment,
            AuditAction::DeleteEnvironment,
        ]
    );
    for entry in &entries {
        assert_eq!(entry.origin, origin);
        assert_eq!(entry.target.as_deref(), Some(id.as_str()));
    }
    shutdown.cancel();
    relaying.await.unwrap();
}

#[tokio::test]
async fn registry_credential_changes_are_audited_with_the_registry() {
    let database = database().await;
    let (_system, nats) = TestNats::own().await.unwrap();
    let auth = bus(&nats, "auth").await;
    let scheduler = bus(&nats, "scheduler").await;
    let (outbox, relay) = outbox(database.store.clone(), scheduler);
    let shutdown = CancellationToken::new();
    let relaying = tokio::spawn(relay.run(shutdown.clone()));
    let owner = UserId::random();
    let origin = Origin {
        user: Some(owner.clone()),
        ..Origin::default()
    };
    let login = RegistryCredential {
        username: "ada".into(),
        password: "secret".into(),
    };
    let store = &database.store;
    let change = async {
        let set = store.set_credential(&owner, "registry.example:5000", &login);
        outbox.wake(&set.await.unwrap());
        let delete = store.delete_credential(&owner, "registry.example:5000");
        outbox.wake(&delete.await.unwrap().unwrap());
    };
    with_origin(origin.clone(), change).await;
    let entries = published_entries(&database, &auth).await;
    let actions: Vec<AuditAction> = entries.iter().map(|entry| entry.action).collect();
    assert_eq!(
        actions,
        [
            AuditAction::SetRegistryCredential,
            AuditAction::DeleteRegistryCredential,
        ]
    );
    for entry in &entries {
        assert_eq!(entry.origin, origin);
        let target = entry.target.as_deref();
        assert_eq!(target, Some("registry.example:5000"));
        assert!(entry.is_storable());
    }
    shutdown.cancel();
    relaying.await.unwrap();
}
