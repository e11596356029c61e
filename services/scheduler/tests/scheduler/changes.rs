//! Changes of a running environment on a real containerd: its network policy, and its end when it is
//! idle.

use std::time::Duration;

use agentbox_contracts::environment::rpc::{Patch, PatchReply, PatchRequest};
use agentbox_contracts::environment::{Environment, NetworkPolicy, Status, StatusReason};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{ExecRequest, Open, OpenKind};
use agentbox_contracts::ids::{EnvironmentId, ExecId};
use agentbox_scheduler::environment::store;
use chrono::{TimeDelta, Utc};

use crate::support::cluster::{CALL, CLUSTER, World};
use crate::support::{eventually, request};

const SOON: Duration = Duration::from_secs(20);
/// The idle timeout, the delays of reports and of the sweeper, and some more.
const IDLE_END: Duration = Duration::from_secs(90);

fn policy(port: u16) -> NetworkPolicy {
    NetworkPolicy {
        allowed_ingress_ports: vec![port],
        ..NetworkPolicy::default()
    }
}

async fn patch(
    world: &World,
    id: &EnvironmentId,
    network_policy: NetworkPolicy,
) -> Result<PatchReply, Error> {
    let request = PatchRequest {
        id: id.clone(),
        name: None,
        labels: None,
        timeout_s: None,
        idle_timeout_s: None,
        network_policy: Some(network_policy),
    };
    world.gateway.call::<Patch>(&request, CALL).await
}

async fn is_pending(world: &World, id: &EnvironmentId) -> bool {
    let record = world.database.store.get(id).await.unwrap().unwrap();
    record.network_policy_pending
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_policy_is_in_force_before_the_answer_or_after_the_next_reconcile() {
    let world = World::new().await;
    let replica = world.replica().await;
    let created = world.create(request("policy")).await;
    // Its box may be starting: it gets the new policy all the same.
    let early = patch(&world, &created.id, policy(80)).await.unwrap();
    assert_ne!(early.network_policy_applied, Some(false));
    world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    eventually("the early policy is applied", SOON, async || {
        !is_pending(&world, &created.id).await
    })
    .await;
    for _ in 0..2 {
        let changed = patch(&world, &created.id, policy(81)).await.unwrap();
        assert_eq!(changed.network_policy_applied, Some(true));
        let isolation = changed.environment.request.isolation.unwrap();
        assert_eq!(isolation.network_policy, Some(policy(81)));
        assert!(!is_pending(&world, &created.id).await);
    }
    // As if the handler was killed after it had stored the policy.
    let store = &world.database.store;
    let record = store.get(&created.id).await.unwrap().unwrap();
    let stored = store::Patch {
        network_policy: Some(policy(82)),
        ..store::Patch::default()
    };
    store.patch(&record, &stored, Utc::now()).await.unwrap();
    eventually("the stored policy is applied", SOON, async || {
        !is_pending(&world, &created.id).await
    })
    .await;
    replica.stop().await;
}

/// Opens a session that runs a command.
fn running(environment: &Environment) -> Open {
    Open {
        environment: environment.id.clone(),
        owner: Some(environment.owner.clone()),
        address: environment.address,
        status: environment.status,
        kind: OpenKind::Exec(ExecRequest {
            id: ExecId::random(),
            command: vec!["sleep".into(), "1000".into()],
            working_dir: None,
            env: Default::default(),
            user: None,
            merge_stderr: false,
            stream: false,
            stdin: None,
            stdin_follows: false,
            timeout_ms: 1_000_000,
            max_output_bytes: 1_000,
        }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_environment_expires_and_one_in_use_does_not() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut wanted = request("idle");
    wanted.idle_timeout_s = Some(10);
    let idle = world.create(wanted.clone()).await;
    let used = world.create(wanted).await;
    world.wait_for_status(&idle.id, Status::Running, SOON).await;
    let used = world.wait_for_status(&used.id, Status::Running, SOON).await;
    let session = world
        .gateway
        .open_session::<BoxSession>(CLUSTER, &running(&used), CALL)
        .await
        .unwrap();
    let ended = world
        .wait_for_status(&idle.id, Status::Terminated, IDLE_END)
        .await;
    assert_eq!(ended.status_reason, Some(StatusReason::Expired));
    let message = ended.status_message.unwrap();
    assert!(message.contains("idle_timeout"), "{message}");
    let used = world.get(&used.id).await;
    assert_eq!(used.status, Status::Running);
    let last = used.last_active_at.unwrap();
    assert!(Utc::now() - last < TimeDelta::seconds(30), "{last}");
    drop(session);
    replica.stop().await;
}
