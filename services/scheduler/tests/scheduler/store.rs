//! The store on a real Postgres: fencing, quotas, idempotency, capacity, claims, leases.

mod activity;
mod execution_events;
mod expiry;
mod get_many;
mod metering;
mod policy;
mod quota;
mod statistics;
mod warm_boxes;
mod warm_usage;

use std::time::Duration;

use agentbox_contracts::environment::rpc::{DeleteOwnedRequest, GetRequest};
use agentbox_contracts::environment::{
    Isolation, NetworkPolicy, SecurityContext, Status, Toleration,
};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::{EnvironmentId, InstanceId, UserId};
use agentbox_contracts::registry::MAX_CREDENTIALS;
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::RegistryCredential;
use agentbox_scheduler::cluster::placement::Allocatable;
use agentbox_scheduler::environment::quota::Quota;
use agentbox_scheduler::environment::state::{EndReason, LifecycleEvent, transition};
use agentbox_scheduler::environment::store::{
    ActiveEnvironment, Change, Claim, Patch, Reservation, Store, StoreError,
};
use chrono::Utc;
use futures::future::join_all;

use crate::support::scheduler::environments;
use crate::support::{Database, concurrently, creation, database, eventually, request, secret};

fn started() -> LifecycleEvent {
    LifecycleEvent::Started {
        address: "10.0.0.2:10777".parse().unwrap(),
        at: Utc::now(),
    }
}

#[tokio::test]
async fn created_environment_is_read_as_it_was_returned() {
    let database = database().await;
    let mut wanted = request("reads-back");
    wanted.labels.insert("project".into(), "x".into());
    wanted.env.insert("A".into(), "ü\n\"'".into());
    wanted.secret_env.insert("B".into(), "secret".into());
    wanted.command = Some(vec!["sh".into(), "-c".into(), "exit 3".into()]);
    wanted.node_selector.insert("disk".into(), "ssd".into());
    wanted.tolerations = vec![Toleration {
        key: Some("gpu".into()),
        operator: Some("Exists".into()),
        value: None,
        effect: Some("NoExecute".into()),
        toleration_seconds: Some(30),
    }];
    wanted.isolation = Some(Isolation {
        runtime_class: Some("gvisor".into()),
        network_policy: Some(NetworkPolicy {
            allow_internet: true,
            allowed_egress_cidrs: vec!["10.0.0.0/8".into()],
            allowed_ingress_ports: vec![8080],
            allow_cluster_internal: true,
        }),
        security_context: Some(SecurityContext {
            run_as_user: Some(1000),
            run_as_group: Some(1001),
            run_as_non_root: Some(true),
            read_only_root_filesystem: Some(true),
            allow_privilege_escalation: Some(false),
        }),
    });
    let creation = creation(&UserId::random(), wanted);
    let created = database.store.create(&creation).await.unwrap();
    let opened = database.store.open(&created).unwrap();
    assert_eq!(opened, creation.environment);
    let read = database
        .store
        .get(&creation.environment.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read, created);
}

/// The number of rows of all tables that contain `text`.
async fn rows_with(database: &Database, text: &str) -> i64 {
    let mut rows = 0;
    for table in ["environments", "idempotency", "outbox", "reconcile_queue"] {
        let sql = format!("SELECT count(*) FROM {table} AS t WHERE t::text LIKE '%{text}%'");
        rows += database.number(&sql).await;
    }
    rows
}

#[tokio::test]
async fn variables_are_sealed_at_rest_and_bound_to_their_environment() {
    let database = database().await;
    let mut wanted = request("sealed");
    wanted.env.insert("A".into(), "plain-value".into());
    wanted.secret_env.insert("B".into(), "secret-value".into());
    let mut creation = creation(&UserId::random(), wanted);
    creation.idempotency_key = Some("key-1".into());
    let mut created = database.store.create(&creation).await.unwrap();
    for text in ["plain-value", "secret-value"] {
        assert_eq!(rows_with(&database, text).await, 0, "{text}");
    }
    let id = creation.environment.id.clone();
    let reply = environments(&database)
        .await
        .get(GetRequest { id })
        .await
        .unwrap();
    assert_eq!(reply.request.env, creation.environment.request.env);
    assert!(reply.request.secret_env.is_empty());
    // In the row of another environment they are invalid.
    created.environment.id = EnvironmentId::random();
    let moved = database.store.open(&created);
    assert!(matches!(moved, Err(StoreError::Sealed { .. })), "{moved:?}");
}

fn login(password: &str) -> RegistryCredential {
    RegistryCredential {
        username: "ada".into(),
        password: password.into(),
    }
}

#[tokio::test]
async fn registry_credential_is_sealed_and_bound_to_its_owner_and_registry() {
    let database = database().await;
    let store = &database.store;
    let (owner, other) = (UserId::random(), UserId::random());
    for password in ["old-password", "new-password"] {
        let login = login(password);
        let set = store.set_credential(&owner, "registry.example", &login);
        set.await.unwrap();
    }
    let plain = "SELECT count(*) FROM registry_credentials
         WHERE position('password'::bytea IN sealed) > 0";
    assert_eq!(database.number(plain).await, 0);
    let read = store.credential(&owner, "registry.example").await.unwrap();
    assert_eq!(read, Some(login("new-password")));
    for (owner, registry) in [(&owner, "other.example"), (&other, "registry.example")] {
        assert_eq!(store.credential(owner, registry).await.unwrap(), None);
    }
    let (listed, total) = store.list_credentials(&owner, 10, 0).await.unwrap();
    assert_eq!((listed.len(), total), (1, 1));
    assert_eq!(listed[0].registry, "registry.example");
    // In the row of another user it is invalid.
    database
        .execute(&format!(
            "UPDATE registry_credentials SET owner = '{other}'"
        ))
        .await;
    let moved = store.credential(&other, "registry.example").await;
    assert!(
        matches!(moved, Err(StoreError::SealedCredential { .. })),
        "{moved:?}"
    );
    // A replica with another secret does not start.
    let replica = Store::new(database.connection.clone(), secret(2));
    assert!(replica.seal_stored_variables().await.is_err());
}

#[tokio::test]
async fn registry_credentials_are_bounded_and_deleted_with_their_owner() {
    let database = database().await;
    let store = &database.store;
    let (owner, other) = (UserId::random(), UserId::random());
    let login = login("x");
    for number in 0..MAX_CREDENTIALS {
        let registry = format!("r{number}.example");
        let set = store.set_credential(&owner, &registry, &login);
        set.await.unwrap();
    }
    let set = store.set_credential(&owner, "more.example", &login);
    match set.await {
        Err(StoreError::Refused(error)) => assert_eq!(error.code, ErrorCode::QuotaExceeded),
        outcome => panic!("{outcome:?}"),
    }
    // One that exists may be replaced, and another user has its own.
    for (owner, registry) in [(&owner, "r0.example"), (&other, "more.example")] {
        let set = store.set_credential(owner, registry, &login);
        set.await.unwrap();
    }
    let deleted = store.delete_credential(&owner, "r0.example").await;
    assert!(deleted.unwrap().is_some());
    let again = store.delete_credential(&owner, "r0.example").await;
    assert!(again.unwrap().is_none());
    let environments = environments(&database).await;
    let request = DeleteOwnedRequest {
        owner: owner.clone(),
    };
    environments.delete_owned(request).await.unwrap();
    for (owner, left) in [(&owner, 0), (&other, 1)] {
        let (_, total) = store.list_credentials(owner, 10, 0).await.unwrap();
        assert_eq!(total, left);
    }
}

#[tokio::test]
async fn variables_of_an_older_version_are_sealed_at_the_start() {
    let database = database().await;
    let wanted = creation(&UserId::random(), request("older"));
    let created = database.store.create(&wanted).await.unwrap();
    assert_eq!(created.sealed_variables, None);
    database
        .execute(r#"UPDATE environments SET request = request || '{"env": {"A": "plain-value"}}'"#)
        .await;
    let id = &wanted.environment.id;
    for expected in [1, 0] {
        let record = database.store.get(id).await.unwrap().unwrap();
        let opened = database.store.open(&record).unwrap();
        assert_eq!(opened.request.env["A"], "plain-value");
        let sealed = database.store.seal_stored_variables().await.unwrap();
        assert_eq!(sealed, expected);
        assert_eq!(rows_with(&database, "plain-value").await, 0);
    }
}

#[tokio::test]
async fn start_with_another_secret_is_refused() {
    let database = database().await;
    let other = Store::new(database.connection.clone(), secret(2));
    assert_eq!(other.seal_stored_variables().await.unwrap(), 0);
    let mut wanted = request("sealed");
    wanted.env.insert("A".into(), "x".into());
    let creation = creation(&UserId::random(), wanted);
    database.store.create(&creation).await.unwrap();
    let error = other.seal_stored_variables().await.unwrap_err();
    assert!(matches!(error, StoreError::Sealed { .. }), "{error:?}");
    // The environment can be listed and ended nevertheless.
    other.get(&creation.environment.id).await.unwrap().unwrap();
}

#[tokio::test]
async fn late_writer_is_fenced_and_changes_nothing() {
    let database = database().await;
    let before = database
        .store
        .create(&creation(&UserId::random(), request("fenced")))
        .await
        .unwrap();
    let now = Utc::now();
    let running = transition(now, &before.state(), &started()).unwrap();
    let ending = transition(
        now,
        &before.state(),
        &LifecycleEvent::EndRequested(EndReason::Deleted),
    )
    .unwrap();
    let requested = Change::requested(&before, ending, Duration::ZERO, now);
    let deleted = database
        .store
        .change(&before, &requested, now)
        .await
        .unwrap();
    assert_eq!(deleted.environment.generation, 2);
    // A reconciler that read the row before the deletion records the start of the box.
    let late = database
        .store
        .change(&before, &Change::observed(&before, running), now)
        .await;
    assert!(matches!(late, Err(StoreError::Fenced)), "{late:?}");
    let patch = Patch {
        name: Some("other".into()),
        ..Patch::default()
    };
    assert!(matches!(
        database.store.patch(&before, &patch, now).await,
        Err(StoreError::Fenced)
    ));
    assert_eq!(
        database
            .store
            .get(&before.environment.id)
            .await
            .unwrap()
            .unwrap(),
        deleted
    );
    // No event of the transition that was fenced: created, then deleted.
    let events = database
        .number("SELECT count(*) FROM outbox WHERE kind = 'event'")
        .await;
    assert_eq!(events, 2);
}

#[tokio::test]
async fn concurrent_equal_transitions_succeed_once() {
    let database = database().await;
    let before = database
        .store
        .create(&creation(&UserId::random(), request("race")))
        .await
        .unwrap();
    let now = Utc::now();
    let running = transition(now, &before.state(), &started()).unwrap();
    let change = Change::observed(&before, running);
    let outcomes = join_all((0..8).map(|_| database.store.change(&before, &change, now))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test]
async fn concurrent_creates_stop_exactly_at_the_quota() {
    let database = database().await;
    let owner = UserId::random();
    let quota = Quota {
        environments: Some(7),
        cpu: None,
        memory: Some(Bytes(64 << 20 << 4)),
        storage: None,
    };
    let outcomes = concurrently(50, |n| {
        let store = database.store.clone();
        let mut creation = creation(&owner, request(&format!("n-{n}")));
        creation.quota = quota;
        async move { store.create(&creation).await }
    })
    .await;
    let created = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(created, 7);
    for refused in outcomes.into_iter().filter_map(Result::err) {
        let StoreError::Refused(error) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(error.code, ErrorCode::QuotaExceeded);
        assert_eq!(
            error.message,
            "your quota of environments is 7: 7 in use, 1 requested; \
             delete an environment or ask an administrator for a larger quota"
        );
    }
    // Another owner has another quota.
    let mut others = creation(&UserId::random(), request("other"));
    others.quota = quota;
    database.store.create(&others).await.unwrap();
}

#[tokio::test]
async fn idempotency_key_returns_the_same_environment_for_the_same_body_only() {
    let database = database().await;
    let owner = UserId::random();
    let with_key = |name: &str| {
        let mut creation = creation(&owner, request(name));
        creation.idempotency_key = Some("key-1".into());
        creation
    };
    let outcomes = join_all((0..10).map(|_| {
        let (store, creation) = (database.store.clone(), with_key("same"));
        async move { store.create(&creation).await.unwrap().environment.id }
    }))
    .await;
    assert!(outcomes.iter().all(|id| *id == outcomes[0]), "{outcomes:?}");
    let conflict = database.store.create(&with_key("other")).await.unwrap_err();
    assert!(
        matches!(&conflict, StoreError::Refused(e) if e.code == ErrorCode::IdempotencyConflict),
        "{conflict:?}"
    );
    // The same key of another owner is another key; after a day it is free again.
    let mut foreign = creation(&UserId::random(), request("other"));
    foreign.idempotency_key = Some("key-1".into());
    database.store.create(&foreign).await.unwrap();
    database
        .execute("UPDATE idempotency SET expires_at = now() - interval '1 second'")
        .await;
    let anew = database.store.create(&with_key("other")).await.unwrap();
    assert_ne!(anew.environment.id, outcomes[0]);
}

#[tokio::test]
async fn capacity_is_reserved_once_and_again_after_an_end() {
    let database = database().await;
    let allocatable = Allocatable {
        cpu: MilliCpu(250),
        ..Allocatable::UNLIMITED
    };
    let records = concurrently(20, |n| {
        let store = database.store.clone();
        let mut creation = creation(&UserId::random(), request(&format!("n-{n}")));
        creation.allocatable = allocatable;
        async move { store.create(&creation).await.unwrap() }
    })
    .await;
    let (reserved, waiting): (Vec<_>, Vec<_>) = records
        .into_iter()
        .partition(|record| record.capacity_reserved);
    assert_eq!(reserved.len(), 2, "two of 100m fit in 250m");
    let message = waiting[0].environment.status_message.clone().unwrap();
    assert_eq!(
        message,
        "waiting for capacity in cluster `test`: 50m of CPU available, 100m requested"
    );
    let still = database
        .store
        .reserve_capacity(&waiting[0], allocatable)
        .await
        .unwrap();
    assert!(matches!(still, Reservation::Waiting(_)));

    let now = Utc::now();
    let failed = LifecycleEvent::StartFailed {
        reason: agentbox_contracts::environment::StatusReason::ImagePull,
        message: String::new(),
    };
    let failed = transition(now, &reserved[0].state(), &failed).unwrap();
    database
        .store
        .change(&reserved[0], &Change::observed(&reserved[0], failed), now)
        .await
        .unwrap();
    let outcomes = join_all(
        waiting
            .iter()
            .map(|w| database.store.reserve_capacity(w, allocatable)),
    )
    .await;
    let freed = outcomes
        .iter()
        .filter(|o| matches!(o, Ok(Reservation::Reserved)))
        .count();
    assert_eq!(freed, 1);
}

#[tokio::test]
async fn storage_is_reserved_up_to_the_allocatable_storage() {
    let database = database().await;
    let mut creations: Vec<_> = (0..3)
        .map(|n| creation(&UserId::random(), request(&format!("n-{n}"))))
        .collect();
    let size = creations[0].quantities.storage;
    let mut reserved = Vec::new();
    for creation in &mut creations {
        creation.allocatable.storage = Bytes(size.0 * 2);
        let record = database.store.create(creation).await.unwrap();
        reserved.push(record.capacity_reserved);
        if !record.capacity_reserved {
            let message = record.environment.status_message.unwrap();
            let expected = format!("0 of storage available, {size} requested");
            assert!(message.ends_with(&expected), "{message}");
        }
    }
    assert_eq!(reserved, [true, true, false]);
}

#[tokio::test]
async fn claim_has_one_holder_until_released_or_expired() {
    let database = database().await;
    let store = &database.store;
    let id = store
        .create(&creation(&UserId::random(), request("claim")))
        .await
        .unwrap()
        .environment
        .id;
    let claims = join_all((0..8).map(|n| {
        let (store, id) = (store.clone(), id.clone());
        async move { (n, store.claim(&id, &format!("holder-{n}")).await.unwrap()) }
    }))
    .await;
    let winners: Vec<_> = claims
        .iter()
        .filter(|(_, claim)| *claim == Claim::Acquired)
        .collect();
    assert_eq!(winners.len(), 1, "{claims:?}");
    let holder = format!("holder-{}", winners[0].0);
    // The refused claims requeued the environment once.
    assert!(store.release(&id, &holder, None).await.unwrap());
    assert!(!store.release(&id, &holder, None).await.unwrap());
    assert_eq!(store.claim(&id, "next").await.unwrap(), Claim::Acquired);
    assert_eq!(store.renew(&id, &holder).await.unwrap(), None);
    // The claim of a killed holder expires.
    database
        .execute("UPDATE reconcile_queue SET claim_expires_at = now() - interval '1 second'")
        .await;
    assert_eq!(store.claim(&id, "after").await.unwrap(), Claim::Acquired);
}

#[tokio::test]
async fn due_environment_is_taken_by_one_replica() {
    let database = database().await;
    let mut ids = Vec::new();
    for n in 0..20 {
        let creation = creation(&UserId::random(), request(&format!("n-{n}")));
        ids.push(
            database
                .store
                .create(&creation)
                .await
                .unwrap()
                .environment
                .id,
        );
    }
    let due_later = database
        .number(
            "SELECT count(*) FROM reconcile_queue JOIN environments ON id = environment_id
             WHERE due_at > created_at",
        )
        .await;
    assert_eq!(due_later, 20);
    // Twenty creates may take longer than the delay of the first.
    database
        .execute("UPDATE reconcile_queue SET due_at = now() + interval '1 minute'")
        .await;
    assert!(
        database
            .store
            .take_due("test", 64)
            .await
            .unwrap()
            .is_empty(),
        "not due yet"
    );
    database
        .execute("UPDATE reconcile_queue SET due_at = now()")
        .await;
    assert!(
        database
            .store
            .take_due("other", 64)
            .await
            .unwrap()
            .is_empty()
    );
    let taken = join_all((0..4).map(|_| database.store.take_due("test", 8))).await;
    let mut taken: Vec<_> = taken.into_iter().flat_map(Result::unwrap).collect();
    taken.sort();
    ids.sort();
    assert_eq!(taken, ids);
}

#[tokio::test]
async fn lease_has_one_holder_until_expired_or_released() {
    let database = database().await;
    let [a, b] = [(); 2].map(|()| database.store.leases(InstanceId::random()));
    let long = Duration::from_secs(60);
    assert!(a.acquire("x", long).await.unwrap());
    assert!(!b.acquire("x", long).await.unwrap());
    // Its holder renews it for a moment only.
    assert!(a.acquire("x", Duration::from_millis(200)).await.unwrap());
    eventually("the lease expires", Duration::from_secs(5), async || {
        b.acquire("x", long).await.unwrap()
    })
    .await;
    assert!(!a.acquire("x", long).await.unwrap());
    b.release("x").await.unwrap();
    assert!(a.acquire("x", long).await.unwrap());
}

#[tokio::test]
async fn rows_past_their_retention_are_purged_and_no_others() {
    let database = database().await;
    let store = &database.store;
    let owner = UserId::random();
    let mut ids = Vec::new();
    for name in ["old", "recent", "leftover", "alive"] {
        let record = store
            .create(&creation(&owner, request(name)))
            .await
            .unwrap();
        ids.push(record.environment.id);
    }
    for (id, days, removed) in [(&ids[0], 8, true), (&ids[1], 6, true), (&ids[2], 8, false)] {
        database
            .execute(&format!(
                "UPDATE environments SET status = 'failed', status_reason = 'EXITED',
                    ended_at = now() - interval '{days} days', box_removed = {removed}
                 WHERE id = '{id}'"
            ))
            .await;
    }
    database
        .execute("UPDATE outbox SET published_at = now() - interval '2 days' WHERE id <= 2")
        .await;
    let outbox = database.number("SELECT count(*) FROM outbox").await;
    let purged = store
        .purge(Duration::from_secs(7 * 24 * 3600))
        .await
        .unwrap();
    assert_eq!(purged, 3);
    assert_eq!(
        database.number("SELECT count(*) FROM outbox").await,
        outbox - 2
    );
    for (id, kept) in ids.iter().zip([false, true, true, true]) {
        assert_eq!(store.get(id).await.unwrap().is_some(), kept, "{id}");
    }
    let alive = store.get(&ids[3]).await.unwrap().unwrap();
    assert_eq!(alive.environment.status, Status::Pending);
}

#[tokio::test]
async fn unreadable_row_is_skipped_and_delays_no_other() {
    let database = database().await;
    let store = &database.store;
    let mut ids = Vec::new();
    for name in ["readable", "unreadable"] {
        let creation = creation(&UserId::random(), request(name));
        ids.push(store.create(&creation).await.unwrap().environment.id);
    }
    let unreadable = &ids[1];
    database
        .execute("UPDATE environments SET expires_at = now() - interval '1 minute'")
        .await;
    database
        .execute(&format!(
            "UPDATE environments SET status_reason = 'NEWER',
                expires_at = now() - interval '1 hour' WHERE id = '{unreadable}'"
        ))
        .await;
    // The unreadable row is the first one.
    let expired = store.expired(1).await.unwrap();
    assert_eq!(expired.len(), 1, "{expired:?}");
    assert_eq!(expired[0].environment.id, ids[0]);

    // The box of an environment in an unknown status must not look like an orphan.
    database
        .execute(&format!(
            "ALTER TABLE environments DROP CONSTRAINT environments_status_check;
             UPDATE environments SET status = 'paused' WHERE id = '{unreadable}'"
        ))
        .await;
    let active = store.active_in_cluster("test").await.unwrap();
    assert_eq!(active.len(), 2, "{active:?}");
    assert!(active.contains(&ActiveEnvironment {
        id: unreadable.clone(),
        status: None
    }));

    database
        .execute(&format!(
            "ALTER TABLE reconcile_queue DROP CONSTRAINT reconcile_queue_environment_id_fkey;
             UPDATE reconcile_queue SET due_at = now();
             UPDATE reconcile_queue SET environment_id = 'no id'
                WHERE environment_id = '{unreadable}';
             UPDATE outbox SET created_at = now() - interval '1 minute';
             UPDATE outbox SET environment_id = 'no id' WHERE environment_id = '{unreadable}'"
        ))
        .await;
    assert_eq!(store.take_due("test", 64).await.unwrap(), [ids[0].clone()]);
    assert_eq!(
        store.overdue_environments(64).await.unwrap(),
        [ids[0].clone()]
    );
}
