//! A changed network policy: stored, and pending until it is applied.

use agentbox_contracts::environment::rpc::PatchRequest;
use agentbox_contracts::environment::{NetworkPolicy, Status};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::UserId;
use agentbox_scheduler::environment::state::transition;
use agentbox_scheduler::environment::store::{Change, Patch, StoreError};
use chrono::Utc;

use super::started;
use crate::support::scheduler::environments;
use crate::support::{creation, database, request};

fn policy(port: u16) -> NetworkPolicy {
    NetworkPolicy {
        allowed_ingress_ports: vec![port],
        ..NetworkPolicy::default()
    }
}

fn patch(policy: NetworkPolicy) -> Patch {
    Patch {
        network_policy: Some(policy),
        ..Patch::default()
    }
}

#[tokio::test]
async fn changed_policy_is_pending_until_that_of_its_generation_is_applied() {
    let database = database().await;
    let creation = creation(&UserId::random(), request("policy"));
    let before = database.store.create(&creation).await.unwrap();
    assert!(!before.network_policy_pending);
    let now = Utc::now();
    let running = transition(now, &before.state(), &started()).unwrap();
    let change = Change::observed(&before, running);
    let before = database.store.change(&before, &change, now).await.unwrap();
    let store = &database.store;
    let first = store.patch(&before, &patch(policy(80)), now).await.unwrap();
    assert!(first.network_policy_pending);
    assert_eq!(first.environment.generation, 2);
    let isolation = first.environment.request.isolation.clone().unwrap();
    assert_eq!(isolation.network_policy, Some(policy(80)));
    // A reconcile is due, in case that the handler is killed.
    let due = "SELECT count(*) FROM reconcile_queue WHERE due_at <= now() + interval '10 seconds'";
    assert_eq!(database.number(due).await, 1);
    let second = store.patch(&first, &patch(policy(81)), now).await.unwrap();
    let late = store.mark_network_policy_applied(&first).await;
    assert!(matches!(late, Err(StoreError::Fenced)), "{late:?}");
    let applied = store.mark_network_policy_applied(&second).await.unwrap();
    assert!(!applied.network_policy_pending);
    assert_eq!(applied.environment, second.environment);
    // A PATCH of another field does not apply it again.
    let named = Patch {
        name: Some("renamed".into()),
        ..Patch::default()
    };
    let named = store.patch(&applied, &named, now).await.unwrap();
    assert!(!named.network_policy_pending);
    assert_eq!(
        named.environment.request.isolation,
        second.environment.request.isolation
    );
}

#[tokio::test]
async fn invalid_policy_and_idle_timeout_are_refused_by_field() {
    let database = database().await;
    let environments = environments(&database).await;
    let creation = creation(&UserId::random(), request("refused"));
    let id = database
        .store
        .create(&creation)
        .await
        .unwrap()
        .environment
        .id;
    let request = |network_policy, idle_timeout_s| PatchRequest {
        id: id.clone(),
        name: None,
        labels: None,
        timeout_s: None,
        idle_timeout_s,
        network_policy,
    };
    let cidr = NetworkPolicy {
        allowed_egress_cidrs: vec!["everything".into()],
        ..NetworkPolicy::default()
    };
    for (request, field) in [
        (
            request(Some(cidr), None),
            "network_policy.allowed_egress_cidrs: ",
        ),
        (
            request(Some(policy(0)), None),
            "network_policy.allowed_ingress_ports: ",
        ),
        (request(None, Some(Some(9))), "idle_timeout: "),
    ] {
        let error = environments.patch(request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Validation, "{error}");
        assert!(error.message.starts_with(field), "{error}");
    }
    // A pending environment starts with its new policy: there is nothing to wait for.
    let patched = environments.patch(request(Some(policy(80)), None)).await;
    let patched = patched.unwrap();
    assert_eq!(patched.environment.status, Status::Pending);
    assert_eq!(patched.network_policy_applied, None);
}
