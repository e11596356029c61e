//! Connections to boxes through the API server, as from outside the cluster.

use agentbox_box_protocol::client;
use agentbox_box_protocol::proto::UsageRequest;
use agentbox_box_protocol::token::BoxToken;
use agentbox_runtime::conformance::{Subject, life};
use agentbox_runtime::{BoxConnector as _, ExitReason, Runtime as _};
use agentbox_runtime_kubernetes::{Driver, Reach};

use crate::cluster::{config, subject_with};

async fn from_outside() -> Subject<Driver> {
    let mut config = config().await;
    config.reach = Reach::PortForward;
    subject_with(&config)
}

#[tokio::test]
async fn box_is_reached_and_stopped_through_the_api_server() {
    let subject = from_outside().await;
    let script = "trap 'exit 5' TERM; while :; do sleep 0.1; done";
    let spec = subject.script(script);
    let address = subject.run(&spec).await.unwrap();
    let stream = subject.second.connect(&spec.id, address).await.unwrap();
    let token = BoxToken::parse(&spec.boxd_token).unwrap();
    let mut boxd = client::connect(stream, &token).await.unwrap();
    for _ in 0..100 {
        let usage = boxd.usage(UsageRequest {}).await.unwrap().into_inner();
        assert!(usage.memory_bytes > 0, "{usage:?}");
    }
    let grace = std::time::Duration::from_secs(20);
    subject.first.stop(&spec.id, grace).await.unwrap();
    let end = subject.end_of(&spec.id).await.unwrap();
    assert_eq!((end.exit_code, end.reason), (5, ExitReason::Stopped));
    subject.clean().await.unwrap();
}

#[tokio::test]
async fn ended_box_is_unreachable_through_the_api_server() {
    let subject = from_outside().await;
    let outcome = life::boxd_is_reachable_until_the_box_ends(&subject).await;
    subject.clean().await.unwrap();
    outcome.unwrap();
}
