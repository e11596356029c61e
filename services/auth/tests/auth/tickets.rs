//! Tickets for the streams of browsers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::identity::rpc::{RevokeKey, RevokeKeyRequest, Secret};
use agentbox_contracts::identity::{
    Credential, EnvironmentPermission, Permission, Role, Scope, TicketAction, TicketResource,
};
use agentbox_contracts::ids::{EnvironmentId, ExecId};
use chrono::Utc;

use crate::support::{World, eventually, refused};

const LOGS: TicketAction = TicketAction::Logs;
const ATTACH: TicketAction = TicketAction::Attach;

#[tokio::test]
async fn ticket_grants_only_its_environment_and_action() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::Admin).await;
    for (action, permission) in [(LOGS, Permission::Read), (ATTACH, Permission::Write)] {
        let environment = EnvironmentId::random();
        let issued = auth
            .ticket(&caller.principal, &environment, action)
            .await
            .unwrap();
        let left = (issued.expires_at - Utc::now()).num_seconds();
        assert!((50..=60).contains(&left), "{left} s");
        let principal = auth
            .redeem(&issued.ticket, &environment, action)
            .await
            .unwrap();
        assert_eq!(
            (&principal.user, principal.role),
            (&caller.user.id, Role::Admin)
        );
        let scope = BTreeMap::from([(environment.clone(), permission)]);
        assert_eq!(principal.scope, Scope::Environments(scope));
        let issued_by = Box::new(caller.principal.credential.clone());
        assert_eq!(
            principal.credential,
            Credential::Ticket {
                environment,
                action,
                resource: None,
                issued_by
            }
        );
        assert_eq!(principal.expires_at, caller.principal.expires_at);
        assert_eq!(auth.revalidate(&principal).await.unwrap(), principal);
    }
}

#[tokio::test]
async fn concurrent_redemptions_on_two_replicas_succeed_once() {
    // Ten uses at once on each replica: one that waits for a connection has a deadline.
    let world = World::with(2, &[("AGENTBOX_DATABASE_CONNECTIONS", "12")]).await;
    let caller = world.auth().caller(Role::User).await;
    for _ in 0..3 {
        let environment = EnvironmentId::random();
        let issued = world
            .auth()
            .ticket(&caller.principal, &environment, ATTACH)
            .await
            .unwrap();
        let uses =
            (0..20).map(|i| world.replicas[i % 2].redeem(&issued.ticket, &environment, ATTACH));
        let outcomes = futures::future::join_all(uses).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        for error in outcomes.into_iter().filter_map(Result::err) {
            assert_eq!(error.code, ErrorCode::Unauthorized, "{error}");
        }
    }
}

#[tokio::test]
async fn ticket_for_another_purpose_is_refused_and_not_used_up() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let environment = EnvironmentId::random();
    let ticket = auth
        .ticket(&caller.principal, &environment, LOGS)
        .await
        .unwrap()
        .ticket;
    let mut typo = ticket.0.clone();
    typo.replace_range(
        typo.len() - 1..,
        if ticket.0.ends_with('0') { "1" } else { "0" },
    );
    let messages: BTreeSet<String> = [
        refused(auth.redeem(&ticket, &environment, ATTACH).await),
        refused(auth.redeem(&ticket, &EnvironmentId::random(), LOGS).await),
        refused(auth.redeem(&Secret(typo), &environment, LOGS).await),
        refused(
            auth.redeem(&Secret(String::new()), &environment, LOGS)
                .await,
        ),
        refused(auth.redeem(&caller.token, &environment, LOGS).await),
    ]
    .into();
    assert_eq!(messages.len(), 1, "{messages:?}");
    // Nor is it a bearer token.
    refused(auth.bearer(&ticket).await);
    auth.redeem(&ticket, &environment, LOGS).await.unwrap();
    refused(auth.redeem(&ticket, &environment, LOGS).await);
}

#[tokio::test]
async fn ticket_for_a_resource_is_valid_for_it_alone() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let environment = EnvironmentId::random();
    let execution = || TicketResource::Execution(ExecId::random());
    let path = |path: &[u8]| TicketResource::Path(path.to_vec());
    for (action, resource, other) in [
        (TicketAction::Output, execution(), execution()),
        (TicketAction::ExecutionAttach, execution(), execution()),
        (TicketAction::FileDownload, path(b"/a\xff"), path(b"/a\xfe")),
        (TicketAction::FileUpload, path(b"/a"), path(b"/a/")),
    ] {
        let ticket = auth
            .bound_ticket(&caller.principal, &environment, action, Some(&resource))
            .await
            .unwrap()
            .ticket;
        refused(auth.redeem(&ticket, &environment, action).await);
        let elsewhere = auth.redeem_on(&ticket, &environment, action, Some(&other));
        refused(elsewhere.await);
        let principal = auth
            .redeem_on(&ticket, &environment, action, Some(&resource))
            .await
            .unwrap();
        let expected = Credential::Ticket {
            environment: environment.clone(),
            action,
            resource: Some(resource),
            issued_by: Box::new(caller.principal.credential.clone()),
        };
        assert_eq!(principal.credential, expected);
        assert_eq!(auth.revalidate(&principal).await.unwrap(), principal);
    }
}

#[tokio::test]
async fn ticket_without_the_resource_of_its_action_is_refused() {
    let world = World::start().await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let environment = EnvironmentId::random();
    let path = TicketResource::Path(b"/a".to_vec());
    for (action, resource) in [(LOGS, Some(&path)), (TicketAction::FileDownload, None)] {
        let outcome = auth
            .bound_ticket(&caller.principal, &environment, action, resource)
            .await;
        assert_eq!(outcome.unwrap_err().code, ErrorCode::Internal, "{action}");
    }
}

#[tokio::test]
async fn expired_ticket_is_refused() {
    let world = World::with(1, &[("AGENTBOX_TICKET_TTL", "1")]).await;
    let auth = world.auth();
    let caller = auth.caller(Role::User).await;
    let environment = EnvironmentId::random();
    let issued = auth
        .ticket(&caller.principal, &environment, LOGS)
        .await
        .unwrap();
    let expired = "SELECT count(*) FROM tickets WHERE expires_at < now()";
    eventually("the ticket expires", Duration::from_secs(15), async || {
        world.count(expired).await == 1
    })
    .await;
    refused(auth.redeem(&issued.ticket, &environment, LOGS).await);
}

#[tokio::test]
async fn ticket_and_stream_end_only_with_their_own_login() {
    let world = World::start().await;
    let auth = world.auth();
    let environment = EnvironmentId::random();
    let first = auth.caller(Role::User).await;
    let second = auth.caller_as(first.user.clone()).await;
    let unused = auth
        .ticket(&first.principal, &environment, LOGS)
        .await
        .unwrap()
        .ticket;
    let mut streams = Vec::new();
    for caller in [&first, &second] {
        let ticket = auth
            .ticket(&caller.principal, &environment, LOGS)
            .await
            .unwrap()
            .ticket;
        streams.push(auth.redeem(&ticket, &environment, LOGS).await.unwrap());
    }
    auth.logout(&first.principal).await;
    refused(auth.redeem(&unused, &environment, LOGS).await);
    refused(auth.revalidate(&streams[0]).await);
    auth.revalidate(&streams[1]).await.unwrap();
}

#[tokio::test]
async fn ticket_of_a_key_is_within_its_permissions_and_ends_with_it() {
    let world = World::start().await;
    let auth = world.auth();
    let owner = auth.create_user(Role::User).await;
    let environment = EnvironmentId::random();
    let permission = EnvironmentPermission {
        environment_id: environment.clone(),
        permission: Permission::Read,
    };
    let created = auth.key(&owner.id, vec![permission]).await;
    let principal = auth.bearer(&created.key).await.unwrap();
    let more = auth
        .ticket(&principal, &environment, ATTACH)
        .await
        .unwrap_err();
    assert_eq!(more.code, ErrorCode::Forbidden);
    let elsewhere = auth
        .ticket(&principal, &EnvironmentId::random(), LOGS)
        .await
        .unwrap_err();
    assert_eq!(elsewhere.code, ErrorCode::NotFound);

    let unused = auth
        .ticket(&principal, &environment, LOGS)
        .await
        .unwrap()
        .ticket;
    let used = auth
        .ticket(&principal, &environment, LOGS)
        .await
        .unwrap()
        .ticket;
    let stream = auth.redeem(&used, &environment, LOGS).await.unwrap();
    let again = auth.ticket(&stream, &environment, LOGS).await.unwrap_err();
    assert_eq!(
        again.code,
        ErrorCode::Forbidden,
        "a ticket cannot issue a ticket"
    );
    let revoke = RevokeKeyRequest {
        owner: owner.id.clone(),
        id: created.api_key.id,
        creator: None,
    };
    auth.call::<RevokeKey>(revoke).await.unwrap();
    refused(auth.redeem(&unused, &environment, LOGS).await);
    refused(auth.revalidate(&stream).await);
}
