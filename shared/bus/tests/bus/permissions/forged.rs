//! Requests that reach a server although their sender may not send them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentbox_bus::Bus;
use agentbox_contracts::identity::rpc::Ready;
use agentbox_contracts::rpc::{Empty, Rpc};
use agentbox_contracts::subjects::{self, EVENTS_STREAM};
use agentbox_testing::{NatsEndpoint, TestNats};
use async_nats::ConnectOptions;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{User, foreign_consumer};
use crate::support::{DEADLINE, connect, within};

/// A server of auth that counts its requests.
struct Auth {
    bus: Bus,
    requests: Arc<AtomicUsize>,
    shutdown: CancellationToken,
}

impl Auth {
    async fn start(nats: &NatsEndpoint) -> Self {
        let bus = connect(nats, "auth").await;
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let server = bus
            .serve("auth")
            .on::<Ready, _, _>(move |empty| {
                counted.fetch_add(1, Ordering::Relaxed);
                async move { Ok(empty) }
            })
            .listen()
            .await
            .unwrap();
        let shutdown = CancellationToken::new();
        let until = shutdown.clone();
        tokio::spawn(async move { server.run(until).await.unwrap() });
        Self {
            bus,
            requests,
            shutdown,
        }
    }

    /// The number of served requests, after a request of `gateway`, which is served.
    async fn served(&self, gateway: &Bus) -> usize {
        let asked = gateway.call::<Ready>(&Empty {}, DEADLINE).await;
        assert_eq!(asked, Ok(Empty {}));
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Auth {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn message_that_a_consumer_delivers_to_another_service_is_not_served() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let auth = Auth::start(&nats).await;
    let gateway = connect(&nats, "api-gateway").await;
    let mut scheduler = User::log_in(&nats, "scheduler").await;
    // The body of a request, as an event.
    let stored = scheduler
        .client
        .request("abx.v1.evt.env.probe.probe", "{}".into());
    within(DEADLINE, stored).await.unwrap();
    // Sees the delivery too, after the server of auth has received it.
    let (user, password) = nats.all_access();
    let watcher = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        .connect(&nats.url)
        .await
        .unwrap();
    let subject = subjects::rpc(Ready::SERVICE, Ready::METHOD);
    let mut seen = watcher.subscribe(subject.clone()).await.unwrap();
    watcher.flush().await.unwrap();
    let create = format!("$JS.API.CONSUMER.CREATE.{EVENTS_STREAM}.forged");
    let consumer = foreign_consumer(EVENTS_STREAM, "forged", &subject);
    let created = scheduler.client.request(create, consumer.into());
    within(DEADLINE, created).await.unwrap();
    let delivered = within(DEADLINE, seen.next()).await;
    assert_eq!(&*delivered.unwrap().payload, b"{}");
    assert!(!scheduler.was_refused().await);
    assert_eq!(auth.served(&gateway).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_whose_reply_is_not_for_an_inbox_is_not_served() {
    let nats = TestNats::shared().await.unwrap();
    let auth = Auth::start(&nats).await;
    let gateway = connect(&nats, "api-gateway").await;
    let subject = subjects::rpc(Ready::SERVICE, Ready::METHOD);
    let client = gateway.client();
    // The reply of auth would be a command, a change of a stream, or a request.
    for reply in [
        "abx.v1.cmd.env.probe.probe.probe",
        "$JS.API.STREAM.PURGE.ABX_COMMANDS",
        "abx.v1.rpc.scheduler.delete-owned",
    ] {
        client
            .publish_with_reply(subject.clone(), reply, "{}".into())
            .await
            .unwrap();
    }
    client.publish(subject, "{}".into()).await.unwrap();
    // Sent on the same connection, so auth receives it last.
    assert_eq!(auth.served(&gateway).await, 1);
    assert!(auth.bus.is_connected());
}
