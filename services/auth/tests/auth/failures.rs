//! Errors when Postgres is missing, under load, and for an invalid configuration.

use std::time::{Duration, Instant};

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::Role;
use agentbox_contracts::identity::rpc::Ready;
use agentbox_contracts::rpc::Empty;
use agentbox_testing::TestPostgres;

use crate::support::{PASSWORD, Replica, World, eventually};

#[tokio::test]
async fn authentication_without_postgres_is_unavailable() {
    let mut world = World::start().await;
    let caller = world.auth().caller(Role::User).await;
    let key = world.auth().key(&caller.user.id, Vec::new()).await.key;
    world.replicas[0].is_patient = false;
    let auth = world.auth();
    let name = world.url.rsplit('/').next().unwrap();
    let cut = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false");
    let end =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    world.postgres.execute(&[&cut, &end]).await.unwrap();

    let begun = Instant::now();
    for error in [
        auth.bearer(&caller.token).await.unwrap_err(),
        auth.bearer(&key).await.unwrap_err(),
        auth.revalidate(&caller.principal).await.unwrap_err(),
        auth.login(&caller.user.username, PASSWORD)
            .await
            .unwrap_err(),
        auth.call::<Ready>(Empty {}).await.unwrap_err(),
    ] {
        assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
        assert!(error.retry_after_s.is_some());
    }
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    eventually("auth is not ready", Duration::from_secs(30), async || {
        !auth.is_ready().await
    })
    .await;

    let allow = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true");
    world.postgres.execute(&[&allow]).await.unwrap();
    eventually("auth is ready again", Duration::from_secs(60), async || {
        auth.is_ready().await
    })
    .await;
    auth.bearer(&caller.token).await.unwrap();
    auth.bearer(&key).await.unwrap();
}

#[tokio::test]
async fn logins_beyond_the_queue_are_refused_and_requests_with_a_token_succeed() {
    let few = [
        ("AGENTBOX_HASH_CONCURRENCY", "1"),
        ("AGENTBOX_HASH_QUEUE", "2"),
        // Each login reads its user first. One that waits too long for a connection is refused as well.
        ("AGENTBOX_DATABASE_CONNECTIONS", "32"),
    ];
    let world = World::with(1, &few).await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let logins = (0..100).map(|_| auth.login(&caller.user.username, "not the password"));
    let (outcomes, ()) = tokio::join!(futures::future::join_all(logins), async {
        for _ in 0..20 {
            auth.bearer(&caller.token).await.unwrap();
        }
    });
    let mut refused = 0;
    for error in outcomes.into_iter().map(Result::unwrap_err) {
        match error.code {
            ErrorCode::InvalidCredentials => {}
            ErrorCode::Unavailable => {
                assert!(error.retry_after_s.is_some());
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((1..100).contains(&refused), "{refused} of 100 were refused");
    assert_eq!(
        auth.metric("agentbox_auth_password_queue_full_total", "")
            .await,
        refused
    );
    auth.login(&caller.user.username, PASSWORD).await.unwrap();
}

#[tokio::test]
async fn invalid_configuration_is_refused_at_start_naming_the_variable() {
    let world = World::start().await;
    let other = "0".repeat(64);
    for (name, value, shown) in [
        (
            "AGENTBOX_AUTH_SECRET",
            other.as_str(),
            "was AGENTBOX_AUTH_SECRET changed?",
        ),
        (
            "AGENTBOX_AUTH_SECRET",
            "not-so-secret-hex",
            "AGENTBOX_AUTH_SECRET",
        ),
    ] {
        let log = Replica::start_refused(&world.url, &[(name, value)]).await;
        assert!(log.contains(shown), "{log}");
        assert!(!log.contains(value), "a secret is shown: {log}");
    }
    let empty = TestPostgres::start().await.unwrap().url;
    let short = [("AGENTBOX_ADMIN_PASSWORD", "2short")];
    let log = Replica::start_refused(&empty, &short).await;
    assert!(
        log.contains("AGENTBOX_ADMIN_PASSWORD") && !log.contains("2short"),
        "{log}"
    );
}
