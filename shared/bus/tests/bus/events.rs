//! The stream of environment events.

use agentbox_bus::{Bus, EventStream, StoredEvent};
use agentbox_contracts::environment::{EnvironmentEvent, EventKind, Status};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::subjects;
use agentbox_testing::{NatsEndpoint, TestNats};
use chrono::Utc;
use futures::StreamExt;

use crate::support::{DEADLINE, connect, within};

async fn parties(nats: &NatsEndpoint) -> (Bus, Bus) {
    (
        connect(nats, "scheduler").await,
        connect(nats, "api-gateway").await,
    )
}

fn event(id: &EnvironmentId, kind: EventKind) -> EnvironmentEvent {
    EnvironmentEvent {
        environment_id: id.clone(),
        owner: UserId::random(),
        kind,
        status: Status::Pending,
        status_reason: None,
        status_message: None,
        exit_code: None,
        at: Utc::now(),
    }
}

async fn next(events: &mut EventStream) -> StoredEvent {
    within(3 * DEADLINE, events.next()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_message_id_stores_one_event() {
    let (scheduler, gateway) = parties(&TestNats::shared().await.unwrap()).await;
    let id = EnvironmentId::random();
    let created = event(&id, EventKind::Created);
    let first = scheduler.publish_event(&created, &format!("{id}-1")).await;
    let again = scheduler.publish_event(&created, &format!("{id}-1")).await;
    assert_eq!(first.unwrap(), again.unwrap());
    let mut events = gateway
        .events(subjects::environment_events(&id), 0)
        .await
        .unwrap();
    let stored = next(&mut events).await;
    assert_eq!((stored.event, stored.pending), (created, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_replay_from_sequence_then_follow() {
    let (scheduler, gateway) = parties(&TestNats::shared().await.unwrap()).await;
    let id = EnvironmentId::random();
    let filter = subjects::environment_events(&id);
    assert!(!gateway.has_events(&filter).await.unwrap());
    let mut sequences = Vec::new();
    for kind in [EventKind::Created, EventKind::Running, EventKind::Updated] {
        let message_id = format!("{id}-{}", kind.as_str());
        let sequence = scheduler
            .publish_event(&event(&id, kind), &message_id)
            .await;
        sequences.push(sequence.unwrap());
    }
    assert!(gateway.has_events(&filter).await.unwrap());
    let mut events = gateway.events(filter, sequences[1]).await.unwrap();
    for (sequence, kind, pending) in [
        (sequences[1], EventKind::Running, 1),
        (sequences[2], EventKind::Updated, 0),
    ] {
        let stored = next(&mut events).await;
        assert_eq!(stored.sequence, sequence);
        assert_eq!((stored.event.kind, stored.pending), (kind, pending));
    }
    let last = event(&id, EventKind::Terminated);
    let sequence = scheduler.publish_event(&last, &format!("{id}-last")).await;
    let stored = next(&mut events).await;
    assert_eq!((stored.sequence, stored.event), (sequence.unwrap(), last));
}

#[tokio::test(flavor = "multi_thread")]
async fn event_stream_loses_nothing_across_nats_restart() {
    let (system, nats) = TestNats::own().await.unwrap();
    let (scheduler, gateway) = parties(&nats).await;
    let id = EnvironmentId::random();
    let mut events = gateway
        .events(subjects::environment_events(&id), 0)
        .await
        .unwrap();
    let publish = async |kind: EventKind| {
        let (event, message_id) = (event(&id, kind), format!("{id}-{}", kind.as_str()));
        let published =
            async { while scheduler.publish_event(&event, &message_id).await.is_err() {} };
        within(3 * DEADLINE, published).await;
    };
    publish(EventKind::Created).await;
    assert_eq!(next(&mut events).await.event.kind, EventKind::Created);
    assert!(system.kill("nats", 0));
    publish(EventKind::Running).await;
    publish(EventKind::Terminated).await;
    assert_eq!(next(&mut events).await.event.kind, EventKind::Running);
    assert_eq!(next(&mut events).await.event.kind, EventKind::Terminated);
}
