//! A program with the credential of an event reader: it reads events, and can do nothing else.

use agentbox_contracts::environment::{EnvironmentEvent, EventKind, Status};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::permissions::{EVENT_READER, inbox_prefix};
use agentbox_contracts::subjects::{self, EVENTS_STREAM};
use agentbox_testing::{NatsEndpoint, TestNats};
use async_nats::jetstream::consumer::{DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions};
use chrono::Utc;
use futures::StreamExt as _;

use super::User;
use crate::support::{DEADLINE, connect, connect_with_all_access, within};

fn event(kind: EventKind) -> EnvironmentEvent {
    EnvironmentEvent {
        environment_id: EnvironmentId::random(),
        owner: UserId::random(),
        kind,
        status: Status::Pending,
        status_reason: None,
        status_message: None,
        exit_code: None,
        pool: None,
        execution: None,
        at: Utc::now(),
    }
}

async fn log_in(nats: &NatsEndpoint) -> (Client, Context) {
    let password = nats.passwords[EVENT_READER].clone();
    let client = ConnectOptions::with_user_and_password(EVENT_READER.to_owned(), password)
        .custom_inbox_prefix(inbox_prefix(EVENT_READER))
        .connect(&nats.url)
        .await
        .unwrap();
    (client.clone(), jetstream::new(client))
}

async fn durable(jetstream: &Context) -> PullConsumer {
    let stream = jetstream.get_stream(EVENTS_STREAM).await.unwrap();
    let config = pull::Config {
        durable_name: Some(EVENT_READER.to_owned()),
        deliver_policy: DeliverPolicy::All,
        ..pull::Config::default()
    };
    stream.create_consumer(config).await.unwrap()
}

/// The next event, which is acknowledged.
async fn next(consumer: &PullConsumer) -> EnvironmentEvent {
    let mut batch = consumer
        .batch()
        .max_messages(1)
        .expires(DEADLINE)
        .messages()
        .await
        .unwrap();
    let message = within(2 * DEADLINE, batch.next()).await.unwrap().unwrap();
    message.double_ack().await.unwrap();
    serde_json::from_slice(&message.payload).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_continues_after_a_kill_of_nats() {
    let (system, nats) = TestNats::own().await.unwrap();
    let scheduler = connect(&nats, "scheduler").await;
    let first = event(EventKind::Created);
    scheduler.publish_event(&first, "m-1").await.unwrap();
    let (_client, jetstream) = log_in(&nats).await;
    assert_eq!(next(&durable(&jetstream).await).await, first);
    assert!(system.kill("nats", 0));
    let second = event(EventKind::Running);
    let published = async { while scheduler.publish_event(&second, "m-2").await.is_err() {} };
    within(3 * DEADLINE, published).await;
    // A new connection, as after a crash of the reader.
    let (_client, jetstream) = log_in(&nats).await;
    let consumer = durable(&jetstream).await;
    let mut read = next(&consumer).await;
    if read == first {
        // NATS writes the positions of consumers a moment after an acknowledgement.
        read = next(&consumer).await;
    }
    assert_eq!(read, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_reader_continues_after_the_last_event_that_it_acknowledged() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let scheduler = connect(&nats, "scheduler").await;
    let (first, second) = (event(EventKind::Created), event(EventKind::Running));
    scheduler.publish_event(&first, "m-1").await.unwrap();
    scheduler.publish_event(&second, "m-2").await.unwrap();
    let (client, jetstream) = log_in(&nats).await;
    assert_eq!(next(&durable(&jetstream).await).await, first);
    drop((client, jetstream));
    let (_client, jetstream) = log_in(&nats).await;
    assert_eq!(next(&durable(&jetstream).await).await, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_cannot_publish_read_foreign_subjects_or_delete() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let admin = connect_with_all_access(&nats).await;
    let mut stream = admin.jetstream().get_stream(EVENTS_STREAM).await.unwrap();
    let other = pull::Config {
        durable_name: Some("other".to_owned()),
        ..pull::Config::default()
    };
    stream.create_consumer(other).await.unwrap();
    let (id, owner) = (EnvironmentId::random(), UserId::random());
    let mut reader = User::log_in(&nats, EVENT_READER).await;
    for subject in [
        subjects::event(&owner, &id, EventKind::Running),
        subjects::command("local", "reconcile", &id),
        subjects::rpc("auth", "login"),
        subjects::rpc("webhooks", "list"),
        format!("$JS.API.STREAM.DELETE.{EVENTS_STREAM}"),
        format!("$JS.API.STREAM.PURGE.{EVENTS_STREAM}"),
        format!("$JS.API.STREAM.UPDATE.{EVENTS_STREAM}"),
        format!("$JS.API.STREAM.MSG.DELETE.{EVENTS_STREAM}"),
        format!("$JS.API.STREAM.MSG.GET.{EVENTS_STREAM}"),
        format!("$JS.API.CONSUMER.DELETE.{EVENTS_STREAM}.other"),
        format!("$JS.API.CONSUMER.CREATE.{EVENTS_STREAM}.mine"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{EVENTS_STREAM}.other"),
        format!("$JS.ACK.{EVENTS_STREAM}.other.1.1.1.1.0"),
        "$JS.API.CONSUMER.CREATE.KV_abx_routes.event-reader".to_owned(),
    ] {
        assert!(!reader.may_publish(&subject).await, "{subject}");
    }
    for subject in [
        ">",
        "abx.v1.>",
        "abx.v1.evt.>",
        "abx.v1.rpc.auth.>",
        "_INBOX.>",
        "_INBOX_auth.>",
    ] {
        assert!(!reader.may_subscribe(subject).await, "{subject}");
    }
    assert_eq!(stream.info().await.unwrap().state.consumer_count, 1);
}
