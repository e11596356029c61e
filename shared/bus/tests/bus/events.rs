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
        pool: None,
        execution: None,
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
    let none = gateway.newest_events(filter.clone(), 10).await.unwrap();
    assert!(none.is_none());
    let mut sequences = Vec::new();
    for kind in [EventKind::Created, EventKind::Running, EventKind::Updated] {
        let message_id = format!("{id}-{}", kind.as_str());
        let sequence = scheduler
            .publish_event(&event(&id, kind), &message_id)
            .await;
        sequences.push(sequence.unwrap());
    }
    let newest = gateway.newest_events(filter.clone(), 10).await.unwrap();
    assert_eq!(next(&mut newest.unwrap()).await.sequence, sequences[0]);
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
async fn newest_events_are_those_of_the_owner_and_no_more_than_the_bound() {
    let (scheduler, gateway) = parties(&TestNats::shared().await.unwrap()).await;
    let (owner, other) = (UserId::random(), UserId::random());
    let mut sequences = Vec::new();
    for number in 0..10 {
        for owner in [&owner, &other] {
            let id = EnvironmentId::random();
            let created = EnvironmentEvent {
                owner: owner.clone(),
                ..event(&id, EventKind::Created)
            };
            let message_id = format!("{id}-{number}");
            let sequence = scheduler.publish_event(&created, &message_id).await;
            sequences.push(sequence.unwrap());
        }
    }
    let own: Vec<u64> = sequences.iter().step_by(2).copied().collect();
    for (max, expected) in [
        (1, &own[9..]),
        (3, &own[7..]),
        (10, &own[..]),
        (99, &own[..]),
    ] {
        let filter = subjects::owner_events(&owner);
        let newest = gateway.newest_events(filter, max).await.unwrap();
        let mut newest = newest.unwrap();
        for (index, sequence) in expected.iter().enumerate() {
            let stored = next(&mut newest).await;
            assert_eq!((stored.sequence, &stored.event.owner), (*sequence, &owner));
            assert_eq!(stored.pending, (expected.len() - 1 - index) as u64);
        }
    }
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
