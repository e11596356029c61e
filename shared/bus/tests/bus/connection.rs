//! Connections: refused credentials, forbidden subjects, lost servers.

use std::time::{Duration, Instant};

use agentbox_bus::{Bus, BusConfig, BusError};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::rpc::Ready;
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::rpc::Empty;
use agentbox_contracts::subjects;
use agentbox_testing::{Components, NatsEndpoint, Options, System, TestNats, repeat_until_below};
use tokio_util::sync::CancellationToken;

use crate::support::{DEADLINE, connect, eventually, eventually_async, within};

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_publish_is_reported() {
    let bus = connect(&TestNats::shared().await.unwrap(), "auth").await;
    let forbidden = subjects::rpc("exec", "anything");
    bus.client()
        .publish(forbidden.clone(), "".into())
        .await
        .unwrap();
    let violation = within(DEADLINE, bus.violated()).await;
    assert!(violation.contains(&forbidden), "{violation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_subscription_is_reported() {
    let bus = connect(&TestNats::shared().await.unwrap(), "api-gateway").await;
    let _server = bus
        .serve("auth")
        .on::<Ready, _, _>(|empty| async move { Ok(empty) })
        .listen()
        .await;
    let violation = within(DEADLINE, bus.violated()).await;
    assert!(violation.to_lowercase().contains("permissions violation"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_is_refused_at_once() {
    let nats = TestNats::shared().await.unwrap();
    let started = Instant::now();
    let refused = Bus::connect(BusConfig {
        url: nats.url,
        tls_ca: None,
        user: "auth".to_owned(),
        password: "wrong".to_owned(),
        service: "auth",
        instance: InstanceId::random(),
    })
    .await;
    assert!(matches!(refused.err(), Some(BusError::Connect { .. })));
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// The error of a login that must be refused without another attempt.
async fn refused_login(nats: &NatsEndpoint) -> String {
    let config = BusConfig {
        url: nats.url.clone(),
        tls_ca: nats.tls_ca.clone(),
        user: "auth".to_owned(),
        password: nats.passwords["auth"].clone(),
        service: "auth",
        instance: InstanceId::random(),
    };
    let refused = within(DEADLINE, Bus::connect(config)).await;
    ErrorChain(&refused.err().unwrap()).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_server_is_verified_before_the_login() {
    let components = Components {
        nats: true,
        ..Components::NONE
    };
    let system = System::start(Options::components(components).nats_tls())
        .await
        .unwrap();
    let nats = system.nats.clone().unwrap();
    connect(&nats, "auth").await.close().await;
    let with = |change: &dyn Fn(&mut NatsEndpoint)| {
        let mut nats = nats.clone();
        change(&mut nats);
        nats
    };
    // The authority alone requires TLS too.
    let unnamed = with(&|nats| nats.url = nats.url.replace("tls://", "nats://"));
    connect(&unnamed, "auth").await.close().await;

    let of_the_system = with(&|nats| nats.tls_ca = None);
    let other_authority = with(&|nats| {
        let path = nats.tls_ca.as_ref().unwrap();
        nats.tls_ca = Some(path.with_file_name("server.pem"));
    });
    // The certificate is valid for 127.0.0.1.
    let other_name = with(&|nats| nats.url = nats.url.replace("127.0.0.1", "localhost"));
    for wrong in [of_the_system, other_authority, other_name] {
        let error = refused_login(&wrong).await;
        assert!(error.contains("certificate"), "{error}");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_without_tls_gets_no_login_of_an_encrypted_client() {
    let mut nats = TestNats::shared().await.unwrap();
    nats.url = nats.url.replace("nats://", "tls://");
    let error = refused_login(&nats).await;
    assert!(!error.contains("authorization"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_succeed_after_nats_restarts() {
    let (system, nats) = TestNats::own().await.unwrap();
    let (gateway, auth) = (
        connect(&nats, "api-gateway").await,
        connect(&nats, "auth").await,
    );
    let server = auth
        .serve("auth")
        .on::<Ready, _, _>(|empty| async move { Ok(empty) })
        .listen()
        .await
        .unwrap();
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(server.run(shutdown.clone()));
    let ask = async |deadline: Duration| gateway.call::<Ready>(&Empty {}, deadline).await;
    assert_eq!(ask(DEADLINE).await, Ok(Empty {}));
    let pid = system.pids("nats")[&0];
    assert!(system.kill("nats", 0));
    // The supervisor starts NATS again.
    let is_another = || system.pids("nats").get(&0).is_some_and(|now| *now != pid);
    eventually("NATS was started again", is_another).await;
    eventually_async("a request is answered", async || {
        let asked = ask(Duration::from_secs(1));
        within(Duration::from_secs(2), asked).await.is_ok()
    })
    .await;
    assert!(gateway.is_connected());
    shutdown.cancel();
    within(2 * DEADLINE, served).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_nats_fail_at_once() {
    let (system, nats) = TestNats::own().await.unwrap();
    let gateway = connect(&nats, "api-gateway").await;
    system.stop().await;
    eventually("the client has noticed", || !gateway.is_connected()).await;
    repeat_until_below(Duration::from_secs(1), async || {
        let started = Instant::now();
        let asked = gateway.call::<Ready>(&Empty {}, DEADLINE).await;
        assert_eq!(asked.unwrap_err().code, ErrorCode::Unavailable);
        let counter = subjects::limit("user", "exec", 1);
        let counted = gateway.increment(counter, 1, DEADLINE).await;
        assert!(matches!(counted, Err(BusError::Disconnected)));
        started.elapsed()
    })
    .await;
    within(DEADLINE, gateway.close()).await;
}
