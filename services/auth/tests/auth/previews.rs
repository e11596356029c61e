//! Previews of ports.

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{RevokeKey, RevokeKeyRequest, Secret};
use agentbox_contracts::identity::{Principal, Role};
use agentbox_contracts::ids::{EnvironmentId, PreviewId};
use agentbox_contracts::preview::rpc::{
    CreatePreview, CreatePreviewReply, CreatePreviewRequest, DeletePreview, DeletePreviewRequest,
    ListPreviews, ListPreviewsRequest, OpenPreview, OpenPreviewReply, OpenPreviewRequest,
    PreviewAccess,
};
use agentbox_contracts::preview::{MAX_PREVIEWS, Preview};
use futures::{StreamExt as _, stream};

use crate::support::{CONNECTIONS, Replica, World, eventually};

impl Replica {
    async fn preview(
        &self,
        principal: &Principal,
        environment: &EnvironmentId,
        public: bool,
        expires_in_s: u64,
    ) -> Result<CreatePreviewReply, Error> {
        self.call::<CreatePreview>(CreatePreviewRequest {
            principal: principal.clone(),
            environment: environment.clone(),
            port: 8080,
            public,
            expires_in_s,
        })
        .await
    }

    async fn open(
        &self,
        preview: &Preview,
        access: PreviewAccess,
    ) -> Result<OpenPreviewReply, Error> {
        let id = preview.id.clone();
        self.call::<OpenPreview>(OpenPreviewRequest { id, access })
            .await
    }
}

fn code(outcome: Result<OpenPreviewReply, Error>) -> Option<ErrorCode> {
    outcome.err().map(|error| error.code)
}

#[tokio::test]
async fn preview_opens_with_its_own_secrets_only() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let environment = EnvironmentId::random();
    // The login ends after an hour, and a preview not after it.
    let created = auth.preview(&caller.principal, &environment, false, 1800);
    let created = created.await.unwrap();
    let other = auth.preview(&caller.principal, &environment, false, 3600);
    let other = other.await.unwrap();
    let preview = &created.preview;
    let (token, link) = (created.token.unwrap(), created.link.unwrap());

    let opened = auth.open(preview, PreviewAccess::Token(token.clone()));
    let opened = opened.await.unwrap();
    assert_eq!((opened.preview.port, opened.preview.public), (8080, false));
    assert_eq!(opened.preview.environment, environment);
    assert_eq!(opened.principal.user, caller.user.id);
    assert_eq!(opened.principal.credential, caller.principal.credential);
    assert_eq!(opened.principal.expires_at, Some(opened.preview.expires_at));
    assert_eq!(opened.cookie, None);

    for access in [
        PreviewAccess::None,
        PreviewAccess::Token(link.clone()),
        PreviewAccess::Token(other.token.unwrap()),
        PreviewAccess::Token(caller.token.clone()),
        PreviewAccess::Cookie(token.clone()),
        PreviewAccess::Link(token),
        PreviewAccess::Link(other.link.unwrap()),
        PreviewAccess::Cookie(Secret(String::new())),
    ] {
        let refused = code(auth.open(preview, access.clone()).await);
        assert_eq!(refused, Some(ErrorCode::Unauthorized), "{access:?}");
    }
    let unknown = OpenPreviewRequest {
        id: PreviewId::random(),
        access: PreviewAccess::Open,
    };
    let unknown = auth.call::<OpenPreview>(unknown).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn link_is_used_once_on_two_replicas_and_gives_the_cookie() {
    let world = World::with(2, &[]).await;
    let caller = world.auth().caller(Role::User).await;
    let environment = EnvironmentId::random();
    let created = world
        .auth()
        .preview(&caller.principal, &environment, false, 3600);
    let created = created.await.unwrap();
    let link = created.link.unwrap();
    let uses = (0..20).map(|i| {
        let access = PreviewAccess::Link(link.clone());
        world.replicas[i % 2].open(&created.preview, access)
    });
    let outcomes = futures::future::join_all(uses).await;
    let mut cookies: Vec<Secret> = outcomes
        .into_iter()
        .filter_map(Result::ok)
        .filter_map(|opened| opened.cookie)
        .collect();
    assert_eq!(cookies.len(), 1);
    let cookie = PreviewAccess::Cookie(cookies.remove(0));
    for replica in &world.replicas {
        replica
            .open(&created.preview, cookie.clone())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn public_preview_opens_without_a_secret_until_it_is_deleted() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let environment = EnvironmentId::random();
    let created = auth.preview(&caller.principal, &environment, true, 3600);
    let created = created.await.unwrap();
    assert!(created.token.is_none() && created.link.is_none());
    for access in [
        PreviewAccess::None,
        PreviewAccess::Cookie(Secret("old".to_owned())),
    ] {
        auth.open(&created.preview, access).await.unwrap();
    }
    let delete = |environment: &EnvironmentId| {
        auth.call::<DeletePreview>(DeletePreviewRequest {
            environment: environment.clone(),
            id: created.preview.id.clone(),
        })
    };
    let foreign = delete(&EnvironmentId::random()).await.unwrap_err();
    assert_eq!(foreign.code, ErrorCode::NotFound);
    delete(&environment).await.unwrap();
    for access in [PreviewAccess::None, PreviewAccess::Open] {
        let ended = code(auth.open(&created.preview, access).await);
        assert_eq!(ended, Some(ErrorCode::NotFound));
    }
}

#[tokio::test]
async fn preview_ends_with_its_creators_credential_and_with_its_time() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let environment = EnvironmentId::random();
    let of_login = auth.preview(&caller.principal, &environment, true, 3600);
    let of_login = of_login.await.unwrap().preview;
    let key = auth.key(&caller.user.id, Vec::new()).await;
    let principal = auth.bearer(&key.key).await.unwrap();
    let of_key = auth.preview(&principal, &environment, true, 3600);
    let of_key = of_key.await.unwrap().preview;
    let short = auth.preview(&principal, &environment, true, 1).await;
    let short = short.unwrap().preview;

    auth.logout(&caller.principal).await;
    let ended = code(auth.open(&of_login, PreviewAccess::Open).await);
    assert_eq!(ended, Some(ErrorCode::NotFound));
    auth.open(&of_key, PreviewAccess::Open).await.unwrap();
    let revoke = RevokeKeyRequest {
        owner: caller.user.id.clone(),
        id: key.api_key.id,
        creator: None,
    };
    eventually("the preview expires", Duration::from_secs(15), async || {
        let list = ListPreviewsRequest {
            environment: environment.clone(),
            limit: 10,
            offset: 0,
        };
        let list = auth.call::<ListPreviews>(list).await.unwrap();
        assert_eq!(list.previews.len() as u64, list.total);
        list.previews.iter().all(|preview| preview.id != short.id)
    })
    .await;
    let ended = code(auth.open(&short, PreviewAccess::Open).await);
    assert_eq!(ended, Some(ErrorCode::NotFound));
    auth.call::<RevokeKey>(revoke).await.unwrap();
    let ended = code(auth.open(&of_key, PreviewAccess::Open).await);
    assert_eq!(ended, Some(ErrorCode::NotFound));
}

#[tokio::test]
async fn preview_above_the_limit_of_its_environment_is_refused() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let environment = EnvironmentId::random();
    let creations =
        (0..MAX_PREVIEWS + 4).map(|_| auth.preview(&caller.principal, &environment, false, 60));
    // As many at once as auth has connections: each waits for the others with one, and more would wait for
    // a connection, which has a deadline.
    let outcomes: Vec<_> = stream::iter(creations)
        .buffer_unordered(CONNECTIONS)
        .collect()
        .await;
    let refused: Vec<ErrorCode> = outcomes
        .into_iter()
        .filter_map(|outcome| outcome.err().map(|error| error.code))
        .collect();
    assert_eq!(refused, [ErrorCode::QuotaExceeded; 4]);
    let elsewhere = EnvironmentId::random();
    let created = auth.preview(&caller.principal, &elsewhere, false, 60).await;
    created.unwrap();
}
