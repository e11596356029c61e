//! The sweep, the audit trail, secrets at rest, and rights on the schema.

use std::time::Duration;

use agentbox_contracts::identity::rpc::{
    CreateUser, CreateUserRequest, DeleteUser, DeleteUserRequest, PatchUser, PatchUserRequest,
    Secret,
};
use agentbox_contracts::identity::{Role, TicketAction};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_testing::TestPostgres;
use sea_orm::ConnectionTrait;

use crate::support::{ADMIN, ADMIN_PASSWORD, PASSWORD, Replica, World, eventually};

#[tokio::test]
async fn expired_rows_are_removed_and_active_rows_stay() {
    let environment = [
        ("AGENTBOX_SWEEP_INTERVAL", "1"),
        ("AGENTBOX_KEY_RETENTION", "60"),
    ];
    let world = World::with(2, &environment).await;
    let auth = world.auth();
    let active = auth.caller(Role::User).await;
    let expired = auth.caller(Role::User).await;
    let environment = EnvironmentId::random();
    for caller in [&active, &expired] {
        auth.ticket(&caller.principal, &environment, TicketAction::Logs)
            .await
            .unwrap();
        auth.key(&caller.user.id, Vec::new()).await;
    }
    let user = format!("'{}'", expired.user.id);
    world
        .execute(&format!(
            "UPDATE tickets SET expires_at = now() - interval '2 hours' WHERE user_id = {user}"
        ))
        .await;
    world
        .execute(&format!(
            "UPDATE logins SET expires_at = now() - interval '2 hours' WHERE user_id = {user}"
        ))
        .await;
    world
        .execute(&format!(
            "UPDATE api_keys SET revoked_at = now() - interval '2 minutes' WHERE owner = {user}"
        ))
        .await;
    for table in ["tickets", "logins", "api_keys"] {
        let left = format!("SELECT count(*) FROM {table}");
        eventually(table, Duration::from_secs(15), async || {
            world.count(&left).await == 1
        })
        .await;
    }
    auth.bearer(&active.token).await.unwrap();
    assert_eq!(world.count("SELECT count(*) FROM users").await, 3);
}

#[tokio::test]
async fn audit_trail_records_actions_and_refuses_updates() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    auth.login(&caller.user.username, "not the password")
        .await
        .unwrap_err();
    let key = auth.key(&caller.user.id, Vec::new()).await.api_key;
    auth.logout(&caller.principal).await;
    world.wait_for_audit(&caller.user.id, 4).await;
    let trail = world
        .text(&format!(
            "SELECT string_agg(action || ' ' || (entry::json ->> 'outcome'), ', ' ORDER BY sequence)
             FROM audit_log WHERE actor = '{}'",
            caller.user.id
        ))
        .await;
    assert_eq!(trail, "login ok, login refused, create-key ok, logout ok");
    let target = format!(
        "SELECT count(*) FROM audit_log WHERE action = 'create-key' AND target = '{}'",
        key.id
    );
    assert_eq!(world.count(&target).await, 1);
    for change in [
        "UPDATE audit_log SET action = 'login'",
        "DELETE FROM audit_log WHERE sequence = 1",
        "TRUNCATE audit_log",
        "TRUNCATE audit_checkpoints",
    ] {
        let error = world.database.execute_unprepared(change).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("append only"), "{change}: {error}");
    }
}

#[tokio::test]
async fn audit_trail_names_the_administrator_of_a_change_to_a_user() {
    let world = World::start().await;
    let auth = world.auth();
    let admin = auth.create_user(Role::Admin).await.id;
    let create = CreateUserRequest {
        actor: Some(admin.clone()),
        username: "changed-by-admin".to_owned(),
        email: "changed@example.com".to_owned(),
        password: Secret(PASSWORD.to_owned()),
        role: Role::User,
    };
    let user = auth.call::<CreateUser>(create).await.unwrap().id;
    let patch = PatchUserRequest {
        actor: Some(admin.clone()),
        id: user.clone(),
        email: Some("again@example.com".to_owned()),
        role: None,
        password: None,
        revoke_keys: false,
        limits: None,
    };
    auth.call::<PatchUser>(patch).await.unwrap();
    let delete = DeleteUserRequest {
        actor: Some(admin.clone()),
        id: user.clone(),
    };
    auth.call::<DeleteUser>(delete).await.unwrap();
    world.wait_for_audit(&admin, 3).await;
    let trail = world
        .text(&format!(
            "SELECT string_agg(action || ' ' || target, ', ' ORDER BY sequence)
             FROM audit_log WHERE actor = '{admin}'"
        ))
        .await;
    assert_eq!(
        trail,
        format!("create-user {user}, patch-user {user}, delete-user {user}")
    );
}

#[tokio::test]
async fn secrets_are_neither_in_the_database_nor_in_the_log() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let key = auth.key(&caller.user.id, Vec::new()).await.key;
    let environment = EnvironmentId::random();
    let ticket = auth
        .ticket(&caller.principal, &environment, TicketAction::Logs)
        .await
        .unwrap();
    auth.bearer(&key).await.unwrap();
    auth.redeem(&ticket.ticket, &environment, TicketAction::Logs)
        .await
        .unwrap();
    auth.login(PASSWORD, "swapped-by-mistake")
        .await
        .unwrap_err();

    let mut everything = auth.log();
    assert!(everything.contains("started"), "the log is empty");
    for table in [
        "users",
        "logins",
        "signing_keys",
        "api_keys",
        "api_key_permissions",
        "tickets",
        "previews",
        "audit_outbox",
        "audit_log",
    ] {
        let rows = format!("SELECT COALESCE(string_agg(t::text, ' '), '') FROM {table} t");
        everything.push_str(&world.text(&rows).await);
    }
    let secret_of_key = key.0.split('_').nth(2).unwrap();
    let signature = caller.token.0.rsplit('.').next().unwrap();
    let random_of_ticket = ticket.ticket.0.trim_start_matches("ticket_");
    for secret in [
        PASSWORD,
        ADMIN_PASSWORD,
        "swapped-by-mistake",
        secret_of_key,
        signature,
        random_of_ticket,
        "a7a7a7a7a7a7a7a7",
    ] {
        assert!(
            !everything.contains(secret),
            "a secret is written: {secret}"
        );
    }
}

#[tokio::test]
async fn auth_needs_only_its_schema_and_other_services_cannot_read_it() {
    let TestPostgres { url, endpoint } = TestPostgres::start().await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    let grant = format!("GRANT CREATE ON DATABASE {name} TO auth");
    endpoint.execute(&[&grant]).await.unwrap();
    let as_role = |role: &str| {
        let (server, _) = endpoint.urls[role].rsplit_once('/').unwrap();
        format!("{server}/{name}")
    };
    let auth = Replica::start(&as_role("auth"), &[]).await;
    auth.login(ADMIN, ADMIN_PASSWORD).await.unwrap();

    let stranger = agentbox_database::connect(&as_role("scheduler"), "auth", 1)
        .await
        .unwrap();
    for table in ["signing_keys", "users", "api_keys"] {
        let read = stranger
            .execute_unprepared(&format!("SELECT * FROM auth.{table}"))
            .await;
        let error = read.unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{table}: {error}");
    }
}
