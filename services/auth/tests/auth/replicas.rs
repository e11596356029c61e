//! Several replicas on one database: a change by one takes effect on the others at once.

use std::collections::BTreeSet;
use std::time::Duration;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::Role;
use agentbox_contracts::identity::rpc::{
    DeleteUser, DeleteUserRequest, PublicKeys, RevokeKey, RevokeKeyRequest, Secret,
};
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::rpc::Empty;
use agentbox_testing::TestPostgres;

use crate::support::{ADMIN, ADMIN_PASSWORD, Replica, World, eventually, refused};

fn kid(token: &Secret) -> String {
    jsonwebtoken::decode_header(&token.0).unwrap().kid.unwrap()
}

async fn kids(auth: &Replica) -> BTreeSet<String> {
    let keys = auth.call::<PublicKeys>(Empty {}).await.unwrap().keys;
    keys.iter()
        .map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn replicas_that_start_together_create_one_administrator_and_one_signing_key() {
    let world = World::with(3, &[]).await;
    assert_eq!(world.count("SELECT count(*) FROM users").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM signing_keys").await, 1);
    for replica in &world.replicas {
        replica.login(ADMIN, ADMIN_PASSWORD).await.unwrap();
    }
    let chained =
        "SELECT (SELECT count(*) FROM audit_outbox) = 0 AND EXISTS (SELECT FROM audit_log)";
    let chained = format!("SELECT ({chained})::int::bigint");
    eventually(
        "all entries are chained",
        Duration::from_secs(15),
        async || world.count(&chained).await == 1,
    )
    .await;
    let audited = "SELECT count(*) FROM audit_log WHERE action = 'bootstrap-admin'";
    assert_eq!(world.count(audited).await, 1);
}

#[tokio::test]
async fn later_start_with_another_admin_password_changes_nothing() {
    let world = World::start().await;
    let other = [
        ("AGENTBOX_ADMIN_PASSWORD", "another-Passw0rd"),
        ("AGENTBOX_ADMIN_USERNAME", "another.admin"),
    ];
    let late = Replica::start(&world.url, &other).await;
    let error = late
        .login("another.admin", "another-Passw0rd")
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidCredentials);
    late.login(ADMIN, ADMIN_PASSWORD).await.unwrap();
}

#[tokio::test]
async fn password_file_is_read_by_the_first_start_only() {
    let empty = TestPostgres::start().await.unwrap().url;
    let path = std::env::temp_dir().join(format!("agentbox-auth-test-{}", InstanceId::random()));
    let shown = path.display().to_string();
    let file = [("AGENTBOX_ADMIN_PASSWORD_FILE", shown.as_str())];
    let log = Replica::start_refused(&empty, &file).await;
    let expected = format!("AGENTBOX_ADMIN_PASSWORD_FILE: cannot read {shown}");
    assert!(log.contains(&expected), "{log}");

    std::fs::write(&path, "from-a-File-1\n").unwrap();
    let first = Replica::start(&empty, &file).await;
    first.login(ADMIN, "from-a-File-1").await.unwrap();
    assert!(!first.environment().contains("from-a-File-1"));
    std::fs::remove_file(&path).unwrap();
    let later = Replica::start(&empty, &file).await;
    later.login(ADMIN, "from-a-File-1").await.unwrap();
}

#[tokio::test]
async fn credential_revoked_by_one_replica_is_refused_by_another_at_once() {
    let world = World::with(2, &[]).await;
    let [first, second] = world.replicas.as_slice() else {
        panic!("two replicas")
    };
    for _ in 0..10 {
        let caller = first.caller(Role::User).await;
        let key = second.key(&caller.user.id, Vec::new()).await;
        second.bearer(&caller.token).await.unwrap();
        let by_key = first.bearer(&key.key).await.unwrap();

        first.logout(&caller.principal).await;
        refused(second.bearer(&caller.token).await);
        refused(second.revalidate(&caller.principal).await);

        let request = RevokeKeyRequest {
            owner: caller.user.id.clone(),
            id: key.api_key.id,
            creator: None,
        };
        second.call::<RevokeKey>(request).await.unwrap();
        refused(first.bearer(&key.key).await);
        refused(first.revalidate(&by_key).await);

        let last = first.caller_as(caller.user).await;
        first
            .call::<DeleteUser>(DeleteUserRequest {
                actor: None,
                id: last.user.id,
            })
            .await
            .unwrap();
        refused(second.bearer(&last.token).await);
    }
}

#[tokio::test]
async fn token_of_a_new_key_is_valid_on_a_replica_that_has_not_read_it() {
    let world = World::with(2, &[("AGENTBOX_KEY_ROTATION", "86400")]).await;
    let [first, second] = world.replicas.as_slice() else {
        panic!("two replicas")
    };
    let old = first.login(ADMIN, ADMIN_PASSWORD).await.unwrap().token;
    second.bearer(&old).await.unwrap();

    // The key no longer signs. The next replica that signs makes another one.
    world
        .execute("UPDATE signing_keys SET signs_until = now() - interval '1 second'")
        .await;
    let restarted = Replica::start(&world.url, &[]).await;
    let new = restarted.login(ADMIN, ADMIN_PASSWORD).await.unwrap().token;
    assert_ne!(kid(&old), kid(&new));
    let both = BTreeSet::from([kid(&old), kid(&new)]);
    // Neither has read the new key: one is asked for its keys first, the other to verify first.
    assert_eq!(kids(first).await, both);
    second.bearer(&new).await.unwrap();
    for replica in [&restarted, first, second] {
        replica.bearer(&new).await.unwrap();
        replica.bearer(&old).await.unwrap();
        assert_eq!(kids(replica).await, both);
    }
    assert_eq!(world.count("SELECT count(*) FROM signing_keys").await, 2);
}

#[tokio::test]
async fn signing_keys_rotate_one_at_a_time_and_old_tokens_stay_valid() {
    let world = World::with(2, &[("AGENTBOX_KEY_ROTATION", "2")]).await;
    let [first, second] = world.replicas.as_slice() else {
        panic!("two replicas")
    };
    let mut tokens = vec![first.login(ADMIN, ADMIN_PASSWORD).await.unwrap().token];
    eventually(
        "three keys have signed",
        Duration::from_secs(30),
        async || {
            let replica = if tokens.len().is_multiple_of(2) {
                first
            } else {
                second
            };
            let token = replica.login(ADMIN, ADMIN_PASSWORD).await.unwrap().token;
            if tokens.iter().all(|seen| kid(seen) != kid(&token)) {
                tokens.push(token);
            }
            tokens.len() == 3
        },
    )
    .await;
    for token in &tokens {
        first.bearer(token).await.unwrap();
        second.bearer(token).await.unwrap();
    }
    // No two keys were made for the same time.
    let overlaps = "SELECT count(*) FROM signing_keys a JOIN signing_keys b ON a.kid < b.kid
        AND tstzrange(a.created_at, a.signs_until) && tstzrange(b.created_at, b.signs_until)";
    assert_eq!(world.count(overlaps).await, 0);
}

#[tokio::test]
async fn credentials_survive_a_killed_replica() {
    let mut world = World::with(2, &[]).await;
    let caller = world.replicas[0].caller(Role::User).await;
    let key = world.replicas[0].key(&caller.user.id, Vec::new()).await.key;
    world.replicas[0].kill();
    world.replicas[1].bearer(&caller.token).await.unwrap();
    world.replicas[1].bearer(&key).await.unwrap();
}
