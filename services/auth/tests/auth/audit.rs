//! The audit trail: entries of other services, origins, the chain, its verification, retention.

use std::collections::BTreeSet;
use std::time::Duration;

use agentbox_bus::with_origin;
use agentbox_contracts::audit::rpc::{ListAudit, ListAuditRequest};
use agentbox_contracts::audit::{AuditAction, AuditEntry, AuditOutcome, Origin};
use agentbox_contracts::identity::Role;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_testing::TestPostgres;
use sea_orm::ConnectionTrait;

use crate::support::{ADMIN, ADMIN_PASSWORD, Replica, World, eventually};

const DEADLINE: Duration = Duration::from_secs(15);

fn origin(user: &UserId) -> Origin {
    Origin {
        user: Some(user.clone()),
        key: None,
        address: "192.0.2.1".parse().ok(),
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
        is_missing: false,
    }
}

fn exec(user: &UserId) -> AuditEntry {
    let target = EnvironmentId::random();
    AuditEntry::new(
        origin(user),
        AuditAction::Exec,
        Some(target.as_str()),
        AuditOutcome::Accepted,
    )
}

#[tokio::test]
async fn entry_has_the_address_and_the_trace_of_its_request() {
    let world = World::start().await;
    let auth = world.auth();
    let user = UserId::random();
    let created = with_origin(origin(&user), auth.create_user(Role::User)).await;
    world.wait_for_audit(&user, 1).await;
    let request = ListAuditRequest {
        user: Some(user.clone()),
        limit: 10,
        ..ListAuditRequest::default()
    };
    let reply = auth.call::<ListAudit>(request).await.unwrap();
    assert_eq!(reply.total, 1);
    let entry = &reply.entries[0].entry;
    assert_eq!(entry.origin, origin(&user));
    assert_eq!(entry.action, AuditAction::CreateUser);
    assert_eq!(entry.target.as_deref(), Some(created.id.as_str()));
    assert_eq!(entry.outcome, AuditOutcome::Ok);
}

#[tokio::test]
async fn entry_of_a_request_without_an_origin_is_marked() {
    let world = World::start().await;
    let auth = world.auth();
    let created = auth.create_user(Role::User).await;
    let request = ListAuditRequest {
        target: Some(created.id.to_string()),
        limit: 1,
        ..ListAuditRequest::default()
    };
    eventually("the entry of the request", DEADLINE, async || {
        let reply = auth.call::<ListAudit>(request.clone()).await.unwrap();
        let origins = reply.entries.iter().map(|chained| &chained.entry.origin);
        origins.collect::<Vec<_>>() == [&Origin::missing()]
    })
    .await;
}

#[tokio::test]
async fn entries_of_the_bus_are_chained_once_and_listed_by_filter_and_page() {
    let world = World::start().await;
    let auth = world.auth();
    let gateway = auth.bus_of("api-gateway").await;
    let user = UserId::random();
    let entries: Vec<AuditEntry> = (0..5).map(|_| exec(&user)).collect();
    for entry in entries.iter().chain(&entries[..2]) {
        gateway.record_audit(entry, DEADLINE).await.unwrap();
    }
    world.wait_for_audit(&user, 5).await;
    let list = async |request: ListAuditRequest| {
        let request = ListAuditRequest {
            user: Some(user.clone()),
            ..request
        };
        let reply = auth.call::<ListAudit>(request).await.unwrap();
        let entries = reply.entries.into_iter().map(|chained| chained.entry);
        (entries.collect::<Vec<AuditEntry>>(), reply.total)
    };
    let page = ListAuditRequest {
        limit: 2,
        offset: 1,
        ..ListAuditRequest::default()
    };
    let newest_first = vec![entries[3].clone(), entries[2].clone()];
    assert_eq!(list(page).await, (newest_first, 5));
    for offset in [5, u64::MAX] {
        let beyond = ListAuditRequest {
            limit: 2,
            offset,
            ..ListAuditRequest::default()
        };
        assert_eq!(list(beyond).await, (Vec::new(), 5));
    }
    let of_target = ListAuditRequest {
        target: entries[4].target.clone(),
        action: Some(AuditAction::Exec),
        since: Some(entries[4].at),
        limit: 10,
        ..ListAuditRequest::default()
    };
    assert_eq!(list(of_target).await, (vec![entries[4].clone()], 1));
    // Before the times of Postgres.
    let since_ever = ListAuditRequest {
        since: "-9999-01-01T00:00:00Z".parse().ok(),
        limit: 1,
        ..ListAuditRequest::default()
    };
    assert_eq!(list(since_ever).await, (vec![entries[4].clone()], 5));
    let before = ListAuditRequest {
        until: Some(entries[0].at),
        limit: 10,
        ..ListAuditRequest::default()
    };
    assert_eq!(list(before).await, (Vec::new(), 0));
}

#[tokio::test]
async fn entry_of_a_newer_replica_in_the_outbox_is_chained_and_delays_no_other() {
    let world = World::start().await;
    let auth = world.auth();
    let user = UserId::random();
    let mut newer = serde_json::to_value(exec(&user)).unwrap();
    newer["action"] = serde_json::json!("join-team");
    let insert = format!("INSERT INTO audit_outbox (entry) VALUES ('{newer}')");
    world.execute(&insert).await;
    with_origin(origin(&user), auth.create_user(Role::User)).await;
    world.wait_for_audit(&user, 2).await;
    let request = ListAuditRequest {
        user: Some(user.clone()),
        limit: 10,
        ..ListAuditRequest::default()
    };
    let reply = auth.call::<ListAudit>(request).await.unwrap();
    let actions = reply.entries.iter().map(|chained| chained.entry.action);
    assert_eq!(actions.collect::<Vec<_>>(), [AuditAction::CreateUser]);
    let (is_valid, log) = auth.verify_audit(&world.url);
    assert!(is_valid, "{log}");
}

#[tokio::test]
async fn entries_survive_kills_of_the_replica_that_chains_them() {
    let mut world = World::with(1, &[]).await;
    let gateway = world.auth().bus_of("api-gateway").await;
    let user = UserId::random();
    let mut ids = BTreeSet::new();
    for round in 0..3 {
        for _ in 0..100 {
            let entry = exec(&user);
            gateway.record_audit(&entry, DEADLINE).await.unwrap();
            ids.insert(entry.id.to_string());
        }
        if round < 2 {
            world.replicas[0].restart_after_kill(&world.url).await;
        }
    }
    world.wait_for_audit(&user, 300).await;
    let stored = world
        .text(&format!(
            "SELECT string_agg(id, ' ') FROM audit_log WHERE actor = '{user}'"
        ))
        .await;
    let stored: BTreeSet<String> = stored.split(' ').map(ToOwned::to_owned).collect();
    assert_eq!(stored, ids);
    let (is_valid, log) = world.auth().verify_audit(&world.url);
    assert!(is_valid, "{log}");
}

#[tokio::test]
async fn command_finds_changed_entries_and_a_cut_tail() {
    let world = World::start().await;
    let auth = world.auth();
    let user = UserId::random();
    let gateway = auth.bus_of("api-gateway").await;
    for _ in 0..3 {
        gateway.record_audit(&exec(&user), DEADLINE).await.unwrap();
    }
    world.wait_for_audit(&user, 3).await;
    // The first head is published with the first batch.
    let bus = auth.bus_of("auth").await;
    eventually("a published head", DEADLINE, async || {
        !bus.audit_heads().await.unwrap().is_empty()
    })
    .await;
    let (is_valid, log) = auth.verify_audit(&world.url);
    assert!(is_valid && log.contains("audit trail verified"), "{log}");

    // An intruder who may change the tables themselves.
    world
        .execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
        .await;
    world
        .execute("UPDATE audit_log SET entry = entry || ' ' WHERE sequence = 2")
        .await;
    let (is_valid, log) = auth.verify_audit(&world.url);
    assert!(!is_valid && log.contains("entry 2 was changed"), "{log}");
    world.execute("DELETE FROM audit_log").await;
    let (is_valid, log) = auth.verify_audit(&world.url);
    assert!(!is_valid && log.contains("the trail was cut"), "{log}");
}

#[tokio::test]
async fn head_is_published_again_after_its_interval() {
    let world = World::with(1, &[("AGENTBOX_AUDIT_HEAD_INTERVAL", "1")]).await;
    let auth = world.auth();
    let (gateway, bus) = (auth.bus_of("api-gateway").await, auth.bus_of("auth").await);
    let user = UserId::random();
    // The head of the first entry may be that of the start; the second one is of an interval.
    for entries in 1..=2 {
        gateway.record_audit(&exec(&user), DEADLINE).await.unwrap();
        world.wait_for_audit(&user, entries).await;
        let newest = "SELECT max(sequence) FROM audit_log";
        let newest = u64::try_from(world.count(newest).await).unwrap();
        eventually("a head of the newest entry", DEADLINE, async || {
            let heads = bus.audit_heads().await.unwrap();
            heads.last().is_some_and(|head| head.sequence >= newest)
        })
        .await;
    }
    let heads = bus.audit_heads().await.unwrap();
    let is_ordered = heads.is_sorted_by_key(|head| head.sequence);
    assert!(is_ordered && heads.len() >= 2, "{heads:?}");
    let (is_valid, log) = auth.verify_audit(&world.url);
    assert!(is_valid, "{log}");
}

#[tokio::test]
async fn retention_leaves_a_signed_checkpoint_and_a_valid_trail() {
    let environment = [
        ("AGENTBOX_SWEEP_INTERVAL", "1"),
        ("AGENTBOX_AUDIT_RETENTION", "3"),
    ];
    let world = World::with(1, &environment).await;
    let auth = world.auth();
    let user = UserId::random();
    let gateway = auth.bus_of("api-gateway").await;
    // An entry may be deleted before the test sees it, so the end of the chain is read.
    let newest = "SELECT coalesce(max(sequence), 0)::bigint FROM (
        SELECT sequence FROM audit_log UNION ALL SELECT sequence FROM audit_checkpoints) AS links";
    let waiting = "SELECT count(*) FROM audit_outbox";
    eventually("the entries of the start", DEADLINE, async || {
        world.count(waiting).await == 0 && world.count(newest).await > 0
    })
    .await;
    let chain_another = async || {
        let before = world.count(newest).await;
        gateway.record_audit(&exec(&user), DEADLINE).await.unwrap();
        eventually("a chained entry", DEADLINE, async || {
            world.count(newest).await > before
        })
        .await;
    };
    chain_another().await;
    eventually("the old entries are deleted", DEADLINE, async || {
        world.count("SELECT count(*) FROM audit_log").await == 0
    })
    .await;
    assert!(world.count("SELECT count(*) FROM audit_checkpoints").await > 0);
    chain_another().await;
    let (is_valid, log) = auth.verify_audit(&world.url);
    assert!(is_valid, "{log}");
}

#[tokio::test]
async fn role_of_auth_cannot_alter_sealed_tables_and_keeps_working() {
    let TestPostgres { url, endpoint } = TestPostgres::start().await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    let grant = format!("GRANT CREATE ON DATABASE {name} TO auth");
    endpoint.execute(&[&grant]).await.unwrap();
    let (server, _) = endpoint.urls["auth"].rsplit_once('/').unwrap();
    let as_auth = format!("{server}/{name}");
    let mut auth = Replica::start(&as_auth, &[]).await;
    let superuser = agentbox_database::connect(&url, "auth", 1).await.unwrap();
    let seal = include_str!("../../../../deploy/helm/files/seal-audit.sql");
    superuser.execute_unprepared(seal).await.unwrap();

    let role = agentbox_database::connect(&as_auth, "auth", 1)
        .await
        .unwrap();
    for change in [
        "UPDATE audit_log SET action = 'login'",
        "TRUNCATE audit_log",
        "DELETE FROM audit_checkpoints",
        "ALTER TABLE audit_log DISABLE TRIGGER ALL",
        "DROP TRIGGER audit_log_delete ON audit_log",
        "DROP TABLE audit_log",
        "DROP TABLE audit_checkpoints",
        "CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger
         LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
        "DROP SCHEMA auth CASCADE",
    ] {
        let error = role.execute_unprepared(change).await.unwrap_err();
        let error = error.to_string();
        let is_denied = error.contains("permission denied") || error.contains("must be owner");
        assert!(is_denied, "{change}: {error}");
    }
    // Nor does a table that hides the checkpoints permit a deletion.
    let hidden = "CREATE TEMPORARY TABLE audit_checkpoints (sequence bigint);
         INSERT INTO pg_temp.audit_checkpoints VALUES (9223372036854775807)";
    role.execute_unprepared(hidden).await.unwrap();
    let chained = agentbox_database::sql::statement("SELECT 1 FROM audit_log LIMIT 1", []);
    eventually("a chained entry", DEADLINE, async || {
        superuser
            .query_one_raw(chained.clone())
            .await
            .unwrap()
            .is_some()
    })
    .await;
    let deletion = role.execute_unprepared("DELETE FROM audit_log").await;
    let error = deletion.unwrap_err().to_string();
    assert!(error.contains("append only"), "{error}");
    // It chains, and starts again.
    auth.restart_after_kill(&as_auth).await;
    let login = auth.login(ADMIN, ADMIN_PASSWORD).await.unwrap();
    let chained = format!(
        "SELECT 1 FROM audit_log WHERE action = 'login' AND actor = '{}'",
        login.user.id
    );
    eventually("the login is chained", DEADLINE, async || {
        let statement = agentbox_database::sql::statement(chained.clone(), []);
        superuser.query_one_raw(statement).await.unwrap().is_some()
    })
    .await;
}
