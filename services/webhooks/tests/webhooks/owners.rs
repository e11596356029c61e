//! Whose webhooks they are, and how long.

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::GetUser;
use agentbox_contracts::identity::{Role, User};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::webhook::MAX_WEBHOOKS;
use agentbox_contracts::webhook::rpc::{
    CreateWebhook, CreateWebhookRequest, DeleteWebhook, GetWebhook, ListWebhooks,
    ListWebhooksRequest, WebhookRequest,
};

use agentbox_testing::eventually;
use chrono::Utc;
use tokio_util::sync::CancellationToken;

use crate::support::{DEADLINE, World};

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

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_a_deleted_user_are_deleted() {
    let world = World::with(&[]).await;
    let (kept, deleted) = (UserId::random(), UserId::random());
    world.create(&kept, URL).await;
    world.create(&deleted, URL).await;
    let known = User {
        id: kept.clone(),
        username: "ada".to_owned(),
        email: "ada@example.com".to_owned(),
        role: Role::User,
        created_at: Utc::now(),
        limits: Default::default(),
    };
    let auth = world.bus_of("auth").await;
    let server = auth
        .serve("auth")
        .on::<GetUser, _, _>(move |request| {
            let known = known.clone();
            async move {
                match request.id == known.id {
                    true => Ok(known),
                    false => Err(Error::not_found("user")),
                }
            }
        })
        .listen()
        .await
        .unwrap();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(server.run(shutdown.clone()));
    world
        .execute("UPDATE webhooks.webhooks SET owner_checked_at = now() - interval '2 hours'")
        .await;
    eventually("the webhooks are deleted", DEADLINE, async || {
        let listed = world.call::<ListWebhooks>(page(&deleted)).await;
        listed.is_ok_and(|listed| listed.total == 0)
    })
    .await;
    let listed = world.call::<ListWebhooks>(page(&kept)).await.unwrap();
    assert_eq!(listed.total, 1);
    shutdown.cancel();
    serving.await.unwrap().unwrap();
}
