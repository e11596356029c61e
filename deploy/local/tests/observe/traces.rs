//! The whole trace of each kind of request is found in Jaeger.

use std::time::Duration;

use agentbox_testing::{Options, System};
use futures::StreamExt as _;
use reqwest::Method;
use serde_json::json;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::client::{Client, Trace, small};
use super::jaeger::Jaeger;

const ATTACH_DEADLINE: Duration = Duration::from_secs(30);

/// Runs a command over a WebSocket until the server closes it.
async fn attach(system: &System, client: &Client, id: &str) -> Trace {
    let trace = Trace::new();
    let url = system.url().replacen("http://", "ws://", 1);
    let url =
        format!("{url}/api/v1/environments/{id}/attach?command=echo&command=attached&tty=false");
    let mut request = url.into_client_request().unwrap();
    let authorization = format!("Bearer {}", client.token);
    let headers = request.headers_mut();
    headers.insert("authorization", authorization.parse().unwrap());
    headers.insert("traceparent", trace.header().parse().unwrap());
    let session = async {
        let (mut socket, _) = connect_async(request).await.unwrap();
        let mut text = String::new();
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Text(part) => text.push_str(part.as_str()),
                Message::Close(_) => break,
                _ => {}
            }
        }
        text
    };
    let text = tokio::time::timeout(ATTACH_DEADLINE, session)
        .await
        .unwrap();
    assert!(text.contains("attached"), "{text}");
    trace
}

/// The spans of a request that reaches a box by this call of boxd. Whether the gateway also asks auth depends
/// on its lease.
fn in_box(call: &str) -> [(&str, &str); 3] {
    [
        ("exec-proxy", "serve exec.open"),
        ("exec-proxy", call),
        ("boxd", call),
    ]
}

const RUN: &str = "agentbox.boxd.v1.Boxd/Run";
const FILES: &str = "agentbox.boxd.v1.Boxd/Files";
const EXECUTIONS: &str = "agentbox.boxd.v1.Boxd/Executions";
const CREATE: [(&str, &str); 2] = [
    ("api-gateway", "request scheduler.create"),
    ("scheduler", "serve scheduler.create"),
];

/// Waits until the trace is complete, and checks that it begins with one request.
async fn expect_complete(jaeger: &Jaeger, what: &str, trace: &Trace, wanted: &[(&str, &str)]) {
    let spans = jaeger.complete(trace, wanted).await;
    let roots: Vec<&str> = spans
        .iter()
        .filter(|span| span.parent == trace.span)
        .map(|span| span.name.as_str())
        .collect();
    assert_eq!(roots.len(), 1, "{what}: {roots:?}");
    assert!(
        roots[0].contains("/api/v1/environments"),
        "{what}: {roots:?}"
    );
}

#[tokio::test]
async fn trace_of_each_kind_of_request_is_complete_in_jaeger() {
    let system = System::start(Options::default().observed()).await.unwrap();
    let client = Client::login(&system).await;
    let jaeger = Jaeger::of(&system);
    let (create, id) = client.create("traced").await;
    let exec = client.exec(&id).await;
    let upload = client.upload(&id).await;
    let download = client.download(&id).await;
    let attached = attach(&system, &client, &id).await;
    let body = json!({ "command": ["true"] });
    let path = format!("/environments/{id}/executions");
    let (execution, _) = client.ask(Method::POST, &path, Some(body)).await;
    for (what, trace, wanted) in [
        ("create", &create, &CREATE[..]),
        ("exec", &exec, &in_box(RUN)[..]),
        ("upload", &upload, &in_box(FILES)[..]),
        ("download", &download, &in_box(FILES)[..]),
        ("attach", &attached, &in_box(EXECUTIONS)[..]),
        ("execution", &execution, &in_box(EXECUTIONS)[..]),
    ] {
        expect_complete(&jaeger, what, trace, wanted).await;
    }
    client.delete(&id).await;
    system.stop().await;
}

#[tokio::test]
async fn trace_of_a_claim_is_complete_in_jaeger() {
    let system = System::start(Options::default().observed()).await.unwrap();
    let client = Client::login(&system).await;
    let jaeger = Jaeger::of(&system);
    client.set_pool("traced", "busybox").await;
    client.wait_for_ready_box("traced").await;
    let (claim, created) = client.begin_create(small("claimed")).await;
    assert_eq!(created["pool"]["hit"], true, "{created}");
    let wanted: Vec<_> = CREATE
        .into_iter()
        .chain([("scheduler", "containerd claim")])
        .collect();
    expect_complete(&jaeger, "claim", &claim, &wanted).await;
    system.stop().await;
}
