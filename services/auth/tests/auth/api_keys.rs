//! API keys.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::rpc::{
    CreateKey, CreateKeyRequest, GetKey, KeyRequest, ListKeys, ListKeysRequest, RevokeKey,
    RevokeKeyRequest, Secret,
};
use agentbox_contracts::identity::{
    ApiKey, Credential, EnvironmentPermission, Permission, Role, Scope,
};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use chrono::Utc;

use crate::support::{World, eventually, refused};

fn request(owner: &UserId) -> CreateKeyRequest {
    CreateKeyRequest {
        owner: owner.clone(),
        description: None,
        expires_in_days: None,
        permissions: Vec::new(),
        management: false,
        creator: None,
    }
}

fn key_of(key: &ApiKey) -> KeyRequest {
    KeyRequest {
        owner: key.owner.clone(),
        id: key.id.clone(),
    }
}

fn revocation_of(key: &ApiKey) -> RevokeKeyRequest {
    RevokeKeyRequest {
        owner: key.owner.clone(),
        id: key.id.clone(),
        creator: None,
    }
}

/// A request of `creator` for a key.
fn request_by(creator: &ApiKey) -> CreateKeyRequest {
    CreateKeyRequest {
        creator: Some(Credential::ApiKey {
            id: creator.id.clone(),
        }),
        ..request(&creator.owner)
    }
}

#[tokio::test]
async fn key_acts_as_its_owner_until_revoked() {
    let world = World::start().await;
    let auth = world.auth();
    let owner = auth.create_user(Role::User).await;
    let created = auth.key(&owner.id, Vec::new()).await;
    assert!(created.key.0.starts_with("agentbox_"));
    let days = (created.api_key.expires_at.unwrap() - Utc::now()).num_hours();
    assert!((29 * 24..=30 * 24).contains(&days), "{days} h");

    let principal = auth.bearer(&created.key).await.unwrap();
    assert_eq!(
        (&principal.user, principal.role, &principal.scope),
        (&owner.id, Role::User, &Scope::Full)
    );
    assert_eq!(
        principal.credential,
        Credential::ApiKey {
            id: created.api_key.id.clone()
        }
    );
    assert_eq!(principal.expires_at, created.api_key.expires_at);
    assert_eq!(auth.revalidate(&principal).await.unwrap(), principal);

    auth.call::<RevokeKey>(revocation_of(&created.api_key))
        .await
        .unwrap();
    refused(auth.bearer(&created.key).await);
    refused(auth.revalidate(&principal).await);
    for code in [
        auth.call::<RevokeKey>(revocation_of(&created.api_key))
            .await
            .unwrap_err()
            .code,
        auth.call::<GetKey>(key_of(&created.api_key))
            .await
            .unwrap_err()
            .code,
    ] {
        assert_eq!(code, ErrorCode::NotFound);
    }
}

#[tokio::test]
async fn key_with_permissions_grants_only_those_environments() {
    let world = World::start().await;
    let auth = world.auth();
    let owner = auth.create_user(Role::Admin).await;
    let permissions: Vec<EnvironmentPermission> =
        [Permission::Write, Permission::Read, Permission::Admin]
            .map(|permission| EnvironmentPermission {
                environment_id: EnvironmentId::random(),
                permission,
            })
            .to_vec();
    let created = auth.key(&owner.id, permissions.clone()).await;
    assert_eq!(created.api_key.permissions, permissions);
    let shown = auth.call::<GetKey>(key_of(&created.api_key)).await.unwrap();
    assert_eq!(
        shown, created.api_key,
        "in the order in which they were given"
    );
    let expected: BTreeMap<_, _> = permissions
        .into_iter()
        .map(|p| (p.environment_id, p.permission))
        .collect();
    assert_eq!(
        auth.bearer(&created.key).await.unwrap().scope,
        Scope::Environments(expected)
    );
}

#[tokio::test]
async fn key_of_another_user_is_not_found() {
    let world = World::start().await;
    let auth = world.auth();
    let (owner, other) = (
        auth.create_user(Role::User).await,
        auth.create_user(Role::Admin).await,
    );
    let created = auth.key(&owner.id, Vec::new()).await;
    let foreign = KeyRequest {
        owner: other.id.clone(),
        id: created.api_key.id.clone(),
    };
    let foreign_revocation = RevokeKeyRequest {
        owner: other.id.clone(),
        ..revocation_of(&created.api_key)
    };
    for code in [
        auth.call::<GetKey>(foreign).await.unwrap_err().code,
        auth.call::<RevokeKey>(foreign_revocation)
            .await
            .unwrap_err()
            .code,
    ] {
        assert_eq!(code, ErrorCode::NotFound);
    }
    auth.bearer(&created.key).await.unwrap();
    let mut stolen = auth.bearer(&created.key).await.unwrap();
    stolen.user = other.id;
    refused(auth.revalidate(&stolen).await);
}

#[tokio::test]
async fn key_of_a_key_expires_no_later_and_is_revoked_with_it() {
    let world = World::start().await;
    let auth = world.auth();
    let owner = auth.create_user(Role::User).await;
    let root = auth.key(&owner.id, Vec::new()).await;
    let unrelated = auth.key(&owner.id, Vec::new()).await;
    let longer = CreateKeyRequest {
        expires_in_days: Some(60),
        ..request_by(&root.api_key)
    };
    let child = auth.call::<CreateKey>(longer).await.unwrap();
    let grandchild = auth
        .call::<CreateKey>(request_by(&child.api_key))
        .await
        .unwrap();
    for made in [&child, &grandchild] {
        assert_eq!(made.api_key.expires_at, root.api_key.expires_at);
        auth.bearer(&made.key).await.unwrap();
    }
    let sooner = CreateKeyRequest {
        expires_in_days: Some(1),
        ..request_by(&root.api_key)
    };
    let sooner = auth.call::<CreateKey>(sooner).await.unwrap();
    assert!(sooner.api_key.expires_at < root.api_key.expires_at);

    auth.call::<RevokeKey>(revocation_of(&root.api_key))
        .await
        .unwrap();
    for gone in [&root, &child, &grandchild, &sooner] {
        refused(auth.bearer(&gone.key).await);
        let late = auth.call::<CreateKey>(request_by(&gone.api_key)).await;
        assert_eq!(late.unwrap_err().code, ErrorCode::Unauthorized);
    }
    auth.bearer(&unrelated.key).await.unwrap();
}

#[tokio::test]
async fn key_revokes_only_itself_and_the_keys_that_it_made() {
    let world = World::start().await;
    let auth = world.auth();
    let owner = auth.create_user(Role::User).await;
    let root = auth.key(&owner.id, Vec::new()).await;
    let child = auth
        .call::<CreateKey>(request_by(&root.api_key))
        .await
        .unwrap();
    let grandchild = auth
        .call::<CreateKey>(request_by(&child.api_key))
        .await
        .unwrap();
    let by = |asking: &ApiKey, key: &ApiKey| RevokeKeyRequest {
        creator: Some(asking.id.clone()),
        ..revocation_of(key)
    };
    let refusal = auth
        .call::<RevokeKey>(by(&child.api_key, &root.api_key))
        .await;
    assert_eq!(refusal.unwrap_err().code, ErrorCode::Forbidden);
    auth.bearer(&root.key).await.unwrap();
    auth.call::<RevokeKey>(by(&root.api_key, &grandchild.api_key))
        .await
        .unwrap();
    refused(auth.bearer(&grandchild.key).await);
    auth.call::<RevokeKey>(by(&child.api_key, &child.api_key))
        .await
        .unwrap();
    refused(auth.bearer(&child.key).await);
    auth.bearer(&root.key).await.unwrap();
}

/// Of a creation by a key and its revocation, no key is left, in either order.
#[tokio::test]
async fn key_made_while_its_creator_is_revoked_ends_with_it() {
    let world = World::start().await;
    let auth = world.auth();
    let owner = auth.create_user(Role::User).await;
    for round in 0..5 {
        let root = auth.key(&owner.id, Vec::new()).await;
        let creations = (0..4).map(|_| auth.call::<CreateKey>(request_by(&root.api_key)));
        let (revoked, made) = tokio::join!(
            auth.call::<RevokeKey>(revocation_of(&root.api_key)),
            futures::future::join_all(creations)
        );
        revoked.unwrap();
        for made in made.into_iter().flatten() {
            assert!(auth.bearer(&made.key).await.is_err(), "round {round}");
        }
    }
}

#[tokio::test]
async fn management_is_part_of_the_keys_principal() {
    let world = World::start().await;
    let auth = world.auth();
    let owner = auth.create_user(Role::Admin).await;
    for management in [false, true] {
        let wanted = CreateKeyRequest {
            management,
            ..request(&owner.id)
        };
        let created = auth.call::<CreateKey>(wanted).await.unwrap();
        assert_eq!(created.api_key.management, management);
        let principal = auth.bearer(&created.key).await.unwrap();
        assert_eq!(principal.management, management);
        assert_eq!(auth.revalidate(&principal).await.unwrap(), principal);
    }
}

#[tokio::test]
async fn list_pages_newest_first_without_revoked_and_foreign_keys() {
    let world = World::start().await;
    let auth = world.auth();
    let (owner, other) = (
        auth.create_user(Role::User).await,
        auth.create_user(Role::User).await,
    );
    auth.key(&other.id, Vec::new()).await;
    let mut newest_first = Vec::new();
    for _ in 0..4 {
        newest_first.insert(0, auth.key(&owner.id, Vec::new()).await.api_key);
    }
    auth.call::<RevokeKey>(revocation_of(&newest_first.remove(1)))
        .await
        .unwrap();
    let page = async |limit, offset| {
        let request = ListKeysRequest {
            owner: owner.id.clone(),
            limit,
            offset,
        };
        auth.call::<ListKeys>(request).await.unwrap()
    };
    let first = page(2, 0).await;
    assert_eq!(
        (first.api_keys.as_slice(), first.total),
        (&newest_first[..2], 3)
    );
    let rest = page(2, 2).await;
    assert_eq!(
        (rest.api_keys.as_slice(), rest.total),
        (&newest_first[2..], 3)
    );
    assert_eq!(page(2, 9).await.total, 3);
}

#[tokio::test]
async fn concurrent_creates_beyond_the_limit_exceed_the_quota() {
    let world = World::with(2, &[("AGENTBOX_KEYS_PER_USER", "3")]).await;
    let owner = world.auth().create_user(Role::User).await;
    let calls = (0..12).map(|i| world.replicas[i % 2].call::<CreateKey>(request(&owner.id)));
    let outcomes = futures::future::join_all(calls).await;
    let (made, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), 3);
    for error in refused.into_iter().filter_map(Result::err) {
        assert_eq!(error.code, ErrorCode::QuotaExceeded);
    }
    let one = made.into_iter().flatten().next().unwrap();
    world
        .auth()
        .call::<RevokeKey>(revocation_of(&one.api_key))
        .await
        .unwrap();
    world
        .auth()
        .call::<CreateKey>(request(&owner.id))
        .await
        .unwrap();
}

#[tokio::test]
async fn invalid_create_request_makes_no_key() {
    let world = World::start().await;
    let auth = world.auth();
    let owner = auth.create_user(Role::User).await;
    let zero = CreateKeyRequest {
        expires_in_days: Some(0),
        ..request(&owner.id)
    };
    assert_eq!(
        auth.call::<CreateKey>(zero).await.unwrap_err().code,
        ErrorCode::Validation
    );
    let nobody = auth
        .call::<CreateKey>(request(&UserId::random()))
        .await
        .unwrap_err();
    assert_eq!(nobody.code, ErrorCode::NotFound);
    assert_eq!(world.count("SELECT count(*) FROM api_keys").await, 0);
}

#[tokio::test]
async fn expired_and_mistyped_keys_get_the_same_error() {
    let world = World::start().await;
    let auth = world.auth();
    let owner = auth.create_user(Role::User).await;
    let key = auth.key(&owner.id, Vec::new()).await.key;
    let other = auth.key(&owner.id, Vec::new()).await.key;
    auth.bearer(&key).await.unwrap();
    world
        .execute("UPDATE api_keys SET expires_at = now()")
        .await;
    let expired = refused(auth.bearer(&key).await);

    // One key's id with the other's secret, and a correct checksum.
    let (mine, theirs): (Vec<_>, Vec<_>) =
        (key.0.split('_').collect(), other.0.split('_').collect());
    let body = format!("agentbox_{}_{}", mine[1], theirs[2]);
    let mixed = format!("{body}_{:08x}", crc32fast::hash(body.as_bytes()));
    world.execute("UPDATE api_keys SET expires_at = NULL").await;
    for text in [
        mixed,
        key.0.replace("agentbox_", "agentbox__"),
        "agentbox_".to_owned(),
    ] {
        assert_eq!(refused(auth.bearer(&Secret(text)).await), expired);
    }
    auth.bearer(&key).await.unwrap();
}

#[tokio::test]
async fn last_use_is_written_at_the_interval_and_at_shutdown() {
    let world = World::with(1, &[("AGENTBOX_LAST_USED_FLUSH", "1")]).await;
    let auth = world.auth();
    let owner = auth.create_user(Role::User).await;
    let created = auth.key(&owner.id, Vec::new()).await;
    let shown = async || {
        auth.call::<GetKey>(key_of(&created.api_key))
            .await
            .unwrap()
            .last_used_at
    };
    assert_eq!(shown().await, None);
    let before = Utc::now();
    auth.bearer(&created.key).await.unwrap();
    eventually("the use is written", Duration::from_secs(10), async || {
        shown().await.is_some()
    })
    .await;
    let used = shown().await.unwrap();
    assert!(
        used >= before - chrono::Duration::seconds(1) && used <= Utc::now(),
        "{used}"
    );

    let mut slow = World::with(1, &[("AGENTBOX_LAST_USED_FLUSH", "3600")]).await;
    let owner = slow.auth().create_user(Role::User).await;
    let created = slow.auth().key(&owner.id, Vec::new()).await;
    slow.auth().bearer(&created.key).await.unwrap();
    slow.replicas[0].stop().await;
    let written = "SELECT count(*) FROM api_keys WHERE last_used_at IS NOT NULL";
    assert_eq!(slow.count(written).await, 1);
}
