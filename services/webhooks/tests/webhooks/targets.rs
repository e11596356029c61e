//! What webhooks do not reach.

use agentbox_contracts::environment::EventKind;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::UserId;
use agentbox_contracts::webhook::DeliveryState;
use agentbox_contracts::webhook::rpc::{CreateWebhook, CreateWebhookRequest};

use crate::support::{Receiver, World};

#[tokio::test(flavor = "multi_thread")]
async fn private_address_in_the_url_is_refused() {
    let world = World::with(&[]).await;
    for url in [
        "http://hooks.example/",
        "https://127.0.0.1/",
        "https://10.0.0.1/",
        "https://[fd00::1]/",
        "https://169.254.169.254/",
    ] {
        let request = CreateWebhookRequest {
            owner: UserId::random(),
            url: url.to_owned(),
            kinds: Vec::new(),
            description: None,
        };
        let refused = world.call::<CreateWebhook>(request).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Validation, "{url}");
        assert!(refused.message.starts_with("url: "), "{refused:?}");
    }
}

/// `localhost` is a name, whose addresses are known only when it is resolved, as is one that resolves to
/// a public address first and to a private one later.
#[tokio::test(flavor = "multi_thread")]
async fn name_of_a_private_address_is_not_reached() {
    let world = World::with(&[]).await;
    let receiver = Receiver::start(&[]).await;
    let owner = UserId::random();
    let url = format!("https://localhost:{}/", receiver.address.port());
    let created = world.create(&owner, &url).await;
    world.publish(&owner, EventKind::Running).await;
    let dead = world
        .delivery(&owner, &created.webhook.id, DeliveryState::Dead)
        .await;
    assert_eq!(
        dead.error.as_deref(),
        Some("the host has no public address")
    );
    assert!(receiver.received().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_is_not_followed() {
    let world = World::start().await;
    let receiver = Receiver::start(&[302, 307, 308]).await;
    let owner = UserId::random();
    let created = world.create(&owner, &receiver.url()).await;
    world.publish(&owner, EventKind::Running).await;
    let dead = world
        .delivery(&owner, &created.webhook.id, DeliveryState::Dead)
        .await;
    assert_eq!(dead.response_status, Some(308));
    // One request for each attempt, and none to the other place.
    assert_eq!(receiver.received().len(), 3);
}
