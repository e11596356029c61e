//! Signatures, retries, dead deliveries, and what survives a kill.

use std::collections::BTreeSet;

use agentbox_contracts::environment::EventKind;
use agentbox_contracts::ids::UserId;
use agentbox_contracts::webhook::DeliveryState;
use agentbox_contracts::webhook::rpc::{
    CreateWebhook, CreateWebhookRequest, Redeliver, RedeliverRequest,
};
use agentbox_testing::eventually;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::support::{ALLOWED_NETWORKS, DEADLINE, Receiver, World};

#[tokio::test(flavor = "multi_thread")]
async fn event_is_sent_with_a_valid_signature() {
    let world = World::start().await;
    let receiver = Receiver::start(&[]).await;
    let owner = UserId::random();
    let created = world.create(&owner, &receiver.url()).await;
    let event = world.publish(&owner, EventKind::Running).await;
    let received = receiver.wait_for(1).await.remove(0);
    let body: Value = serde_json::from_str(&received.body).unwrap();
    assert_eq!(body["type"], "environment.running");
    assert_eq!(
        body["data"]["environment_id"],
        event.environment_id.as_str()
    );
    let delivered = world
        .delivery(&owner, &created.webhook.id, DeliveryState::Delivered)
        .await;
    assert_eq!(received.header("webhook-id"), delivered.id.as_str());
    assert_eq!(body["data"]["id"], delivered.event);
    assert_eq!(
        (delivered.attempts, delivered.response_status),
        (1, Some(204))
    );

    let key = created.secret.0.strip_prefix("whsec_").unwrap().to_owned();
    let key = STANDARD.decode(key).unwrap();
    let timestamp = received.header("webhook-timestamp");
    let signed = format!("{}.{timestamp}.{}", delivered.id, received.body);
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(signed.as_bytes());
    let tag: [u8; 32] = mac.finalize().into_bytes().into();
    let expected = format!("v1,{}", STANDARD.encode(tag));
    assert_eq!(received.header("webhook-signature"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_receives_the_chosen_kinds_of_its_owner_only() {
    let world = World::start().await;
    let receiver = Receiver::start(&[]).await;
    let (owner, other) = (UserId::random(), UserId::random());
    let request = CreateWebhookRequest {
        owner: owner.clone(),
        url: receiver.url(),
        kinds: vec![EventKind::Failed],
        description: None,
    };
    world.call::<CreateWebhook>(request).await.unwrap();
    world.publish(&owner, EventKind::Running).await;
    world.publish(&other, EventKind::Failed).await;
    let failed = world.publish(&owner, EventKind::Failed).await;
    let received = receiver.wait_for(1).await;
    let body: Value = serde_json::from_str(&received[0].body).unwrap();
    assert_eq!(
        body["data"]["environment_id"],
        failed.environment_id.as_str()
    );
    assert_eq!(received.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_attempt_is_repeated_with_the_same_id() {
    let world = World::start().await;
    let receiver = Receiver::start(&[500, 429]).await;
    let owner = UserId::random();
    let created = world.create(&owner, &receiver.url()).await;
    world.publish(&owner, EventKind::Running).await;
    let received = receiver.wait_for(3).await;
    let ids: BTreeSet<&str> = received.iter().map(|r| r.header("webhook-id")).collect();
    assert_eq!(ids.len(), 1);
    let delivered = world
        .delivery(&owner, &created.webhook.id, DeliveryState::Delivered)
        .await;
    assert_eq!(delivered.attempts, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_is_dead_after_its_last_attempt_and_can_be_repeated() {
    let world = World::start().await;
    let receiver = Receiver::start(&[500, 500, 503]).await;
    let owner = UserId::random();
    let created = world.create(&owner, &receiver.url()).await;
    let id = created.webhook.id;
    world.publish(&owner, EventKind::Running).await;
    let dead = world.delivery(&owner, &id, DeliveryState::Dead).await;
    assert_eq!((dead.attempts, dead.response_status), (3, Some(503)));
    assert_eq!(dead.error.as_deref(), Some("the receiver answered 503"));
    assert_eq!(receiver.received().len(), 3);
    let again = RedeliverRequest {
        owner: owner.clone(),
        id: id.clone(),
        delivery: dead.id.clone(),
    };
    let repeated = world.call::<Redeliver>(again).await.unwrap();
    assert_eq!(repeated.state, DeliveryState::Pending);
    let delivered = world.delivery(&owner, &id, DeliveryState::Delivered).await;
    assert_eq!((delivered.id, delivered.attempts), (dead.id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_event_is_lost_when_the_service_and_nats_are_killed() {
    // The deliveries of a killed replica are due again after five timeouts. None is dead before: a machine
    // that stalls may end attempts too.
    let mut world = World::with(&[
        ALLOWED_NETWORKS,
        ("AGENTBOX_WEBHOOK_TIMEOUT", "5"),
        ("AGENTBOX_WEBHOOK_ATTEMPTS", "20"),
    ])
    .await;
    let receiver = Receiver::start(&[]).await;
    let owner = UserId::random();
    world.create(&owner, &receiver.url()).await;
    let mut published = BTreeSet::new();
    for round in 0..3 {
        for _ in 0..10 {
            let event = world.publish(&owner, EventKind::Updated).await;
            published.insert(event.environment_id.to_string());
        }
        if round == 1 {
            assert!(world.system.kill("nats", 0));
        }
        world.restart_after_kill().await;
    }
    // Events that a killed replica has read are delivered again after 30 seconds, and its deliveries are
    // due again after 25.
    eventually("every event is received", 2 * DEADLINE, async || {
        let bodies = receiver.received();
        let received: BTreeSet<String> = bodies
            .iter()
            .map(|received| {
                let body: Value = serde_json::from_str(&received.body).unwrap();
                body["data"]["environment_id"].as_str().unwrap().to_owned()
            })
            .collect();
        received == published
    })
    .await;
}
