//! Whose webhooks they are, and how long.

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::UserId;
use agentbox_contracts::webhook::MAX_WEBHOOKS;
use agentbox_contracts::webhook::rpc::{
    CreateWebhook, CreateWebhookRequest, DeleteWebhook, GetWebhook, ListWebhooks,
    ListWebhooksRequest, WebhookRequest,
};

use crate::support::World;

const URL: &str = "https://hooks.example/";

fn page(owner: &UserId) -> ListWebhooksRequest {
    ListWebhooksRequest {
        owner: owner.clone(),
        limit: 100,
        offset: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_of_another_owner_is_not_found() {
    let world = World::with(&[]).await;
    let owner = UserId::random();
    let id = world.create(&owner, URL).await.webhook.id;
    let of = |owner: &UserId| WebhookRequest {
        owner: owner.clone(),
        id: id.clone(),
    };
    let stranger = UserId::random();
    let refused = world.call::<GetWebhook>(of(&stranger)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotFound);
    let refused = world
        .call::<DeleteWebhook>(of(&stranger))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotFound);
    let listed = world.call::<ListWebhooks>(page(&stranger)).await.unwrap();
    assert_eq!((listed.webhooks.len(), listed.total), (0, 0));
    world.call::<DeleteWebhook>(of(&owner)).await.unwrap();
    let listed = world.call::<ListWebhooks>(page(&owner)).await.unwrap();
    assert_eq!(listed.total, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_has_no_more_webhooks_than_the_bound() {
    let world = World::with(&[]).await;
    let owner = UserId::random();
    for _ in 0..MAX_WEBHOOKS {
        world.create(&owner, URL).await;
    }
    let request = CreateWebhookRequest {
        owner: owner.clone(),
        url: URL.to_owned(),
        kinds: Vec::new(),
        description: None,
    };
    let refused = world.call::<CreateWebhook>(request).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
}
