//! Postgres and NATS with the rights of the services.

use std::time::Duration;

use agentbox_testing::{Components, Options, System, TestNats, TestPostgres};
use futures::StreamExt;

#[tokio::test]
async fn service_role_cannot_read_tables_of_another_service() {
    let server = TestPostgres::start().await.unwrap().endpoint;
    server
        .execute(&[
            "CREATE TABLE scheduler.secret (word text)",
            "ALTER TABLE scheduler.secret OWNER TO scheduler",
        ])
        .await
        .unwrap();
    let as_role = |role: &str, statement: &'static str| {
        let mut endpoint = server.clone();
        endpoint.admin_url.clone_from(&server.urls[role]);
        async move { endpoint.execute(&[statement]).await }
    };
    as_role("scheduler", "INSERT INTO secret VALUES ('x')")
        .await
        .unwrap();
    let error = as_role("auth", "SELECT * FROM scheduler.secret")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("permission denied"), "{error}");
    // The first statement of the migrations.
    as_role("auth", "CREATE SCHEMA IF NOT EXISTS auth")
        .await
        .unwrap();
    as_role("auth", "CREATE TABLE own (id int)").await.unwrap();
}

#[tokio::test]
async fn two_tests_get_different_databases_on_one_server() {
    let first = TestPostgres::start().await.unwrap();
    let second = TestPostgres::start().await.unwrap();
    assert_ne!(first.url, second.url);
    assert_eq!(
        first.endpoint.port, second.endpoint.port,
        "one server for all"
    );
}

#[tokio::test]
async fn nats_drops_messages_without_permission() {
    let nats = TestNats::shared().await.unwrap();
    let connect = |user: String, password: String| {
        async_nats::ConnectOptions::with_user_and_password(user, password).connect(nats.url.clone())
    };
    let (user, password) = nats.all_access();
    let watcher = connect(user.to_owned(), password.to_owned()).await.unwrap();
    let mut seen = watcher.subscribe("abx.v1.>").await.unwrap();
    watcher.flush().await.unwrap();
    let gateway = connect(
        "api-gateway".to_owned(),
        nats.passwords["api-gateway"].clone(),
    )
    .await
    .unwrap();
    for subject in ["abx.v1.cmd.env.local.ensure.x", "abx.v1.rpc.auth.login"] {
        gateway.publish(subject, "x".into()).await.unwrap();
    }
    gateway.flush().await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(20), seen.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(first.subject.as_str(), "abx.v1.rpc.auth.login");
    connect("auth".to_owned(), "wrong".to_owned())
        .await
        .unwrap_err();
}

#[tokio::test]
async fn killed_program_is_restarted() {
    let components = Components {
        nats: true,
        ..Components::NONE
    };
    let system = System::start(Options::components(components))
        .await
        .unwrap();
    let before = system.pids("nats")[&0];
    assert!(system.kill("nats", 0));
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while system.pids("nats").get(&0).is_none_or(|pid| *pid == before) {
        assert!(std::time::Instant::now() < deadline, "it was not restarted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    system.wait_ready(Duration::from_secs(30)).await.unwrap();
    system.stop().await;
}
