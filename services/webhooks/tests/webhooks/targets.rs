//! What webhooks do not reach.

use std::net::{Ipv4Addr, SocketAddr};

use agentbox_contracts::environment::EventKind;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::UserId;
use agentbox_contracts::webhook::DeliveryState;
use agentbox_contracts::webhook::rpc::{CreateWebhook, CreateWebhookRequest};

use crate::names::NameServer;
use crate::support::{Receiver, World};

/// An address that webhooks may reach in some of the tests, where it stands for a public one.
const REACHED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// A private address.
const REFUSED: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Lets webhooks reach [`REACHED`] and nothing else that is not public.
const REACHED_ONLY: (&str, &str) = ("AGENTBOX_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.2/32");

/// Two receivers with the same port, at [`REACHED`] and at [`REFUSED`].
async fn receivers() -> (Receiver, Receiver) {
    loop {
        let any_port = SocketAddr::from((REACHED, 0));
        let reached = Receiver::at(any_port, &[], "/").await.unwrap();
        let same_port = SocketAddr::from((REFUSED, reached.address.port()));
        // Another program may have the port there.
        if let Ok(refused) = Receiver::at(same_port, &[], "/").await {
            return (reached, refused);
        }
    }
}

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

/// `localhost` is a name, whose addresses are known only when it is resolved.
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

/// Each attempt resolves the name once and connects to what it has checked: a second resolution, between
/// the check and the connection, would give the next addresses.
#[tokio::test(flavor = "multi_thread")]
async fn name_that_resolves_to_a_private_address_later_is_not_reached() {
    let names = NameServer::start(&[&[REACHED], &[REFUSED, REACHED], &[REFUSED]]).await;
    let world = World::with_names(&[REACHED_ONLY], &names).await;
    let (reached, refused) = receivers().await;
    let owner = UserId::random();
    let url = format!("http://hooks.example:{}/", reached.address.port());
    let created = world.create(&owner, &url).await;
    for count in 1..=2 {
        world.publish(&owner, EventKind::Running).await;
        reached.wait_for(count).await;
    }
    world.publish(&owner, EventKind::Running).await;
    let dead = world
        .delivery(&owner, &created.webhook.id, DeliveryState::Dead)
        .await;
    assert_eq!(
        dead.error.as_deref(),
        Some("the host has no public address")
    );
    assert_eq!(reached.received().len(), 2);
    assert!(refused.received().is_empty());
    // One for each delivered event, and one for each attempt of the dead one.
    assert_eq!(names.queries(), 2 + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_to_a_private_address_is_not_followed() {
    let world = World::with(&[REACHED_ONLY]).await;
    let refused = Receiver::start(&[]).await;
    let any_port = SocketAddr::from((REACHED, 0));
    let reached = Receiver::at(any_port, &[301, 303, 307], &refused.url()).await;
    let reached = reached.unwrap();
    let owner = UserId::random();
    let created = world.create(&owner, &reached.url()).await;
    world.publish(&owner, EventKind::Running).await;
    let dead = world
        .delivery(&owner, &created.webhook.id, DeliveryState::Dead)
        .await;
    assert_eq!(dead.response_status, Some(307));
    assert_eq!(
        dead.error.as_deref(),
        Some("the receiver answered 307, and redirects are not followed")
    );
    assert_eq!(reached.received().len(), 3);
    assert!(refused.received().is_empty());
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
