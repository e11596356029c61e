//! Faults of a cluster and of the bus: a real driver behind a gate, and lost messages.

mod capacity;
mod gate;
mod pools;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentbox_contracts::environment::rpc::{Delete, DeleteRequest, Patch, PatchRequest};
use agentbox_contracts::environment::{Environment, NetworkPolicy, Status, StatusReason};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::UserId;
use agentbox_runtime::Runtime;
use tokio::task::JoinSet;

use self::gate::{Gate, POLICIES};
use crate::executions::start;
use crate::support::cluster::{CALL, CLUSTER, World};
use crate::support::scheduler::settings;
use crate::support::{eventually, request};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn start_timeout_fails_the_environment_while_its_cluster_is_unreachable() {
    let world = World::new().await;
    let gate = Gate::new(world.driver.clone(), 8);
    let mut settings = settings();
    settings.start_timeout = Duration::from_secs(6);
    let replica = world.replica_with(gate.clone(), settings).await;
    gate.set_open(false);
    let created = world.create(request("too-late")).await;
    let failed = world
        .wait_for_status(&created.id, Status::Failed, SOON)
        .await;
    assert_eq!(failed.status_reason, Some(StatusReason::StartTimeout));
    let message = failed.status_message.unwrap();
    assert!(message.contains("the cluster does not answer"), "{message}");
    assert!(!message.contains("the gate is closed"), "{message}");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_interrupts_a_start_that_hangs() {
    let world = World::new().await;
    let gate = Gate::new(world.driver.clone(), 0);
    let replica = world.replica_with(gate.clone(), settings()).await;
    let created = world.create(request("hangs")).await;
    eventually("the box is being created", SOON, async || {
        gate.ensure_calls.load(Ordering::SeqCst) > 0
    })
    .await;
    let begun = Instant::now();
    let delete = DeleteRequest {
        id: created.id.clone(),
        force: false,
    };
    world.gateway.call::<Delete>(&delete, CALL).await.unwrap();
    let ended = world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;
    assert_eq!(ended.status_reason, Some(StatusReason::Deleted));
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_whose_command_was_lost_still_runs() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut waits = crate::support::creation(&world.owner, request("no-command"));
    waits.environment.cluster = crate::support::cluster::CLUSTER.into();
    // As after a replica that was killed after its commit and whose command was lost.
    let record = world.database.store.create(&waits).await.unwrap();
    world
        .database
        .execute("UPDATE outbox SET published_at = now() WHERE kind = 'command'")
        .await;
    world
        .wait_for_status(&record.environment.id, Status::Running, SOON)
        .await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_that_hangs_delays_no_other() {
    let world = World::new().await;
    // Unreachable as well. Otherwise it would remove the boxes of the other cluster, which are on
    // the same machine.
    let hangs = Gate::new(world.driver.clone(), 0);
    hangs.set_open(false);
    let mut settings = settings();
    settings.max_reconciles = 1;
    let mut ids = Vec::new();
    for cluster in ["hangs", "hangs", CLUSTER] {
        let mut waits = crate::support::creation(&world.owner, request(cluster));
        waits.environment.cluster = cluster.into();
        let record = world.database.store.create(&waits).await.unwrap();
        ids.push(record.environment.id);
    }
    // No commands, so each environment is found when it is due. The first two are due first.
    world
        .database
        .execute("UPDATE outbox SET published_at = now() WHERE kind = 'command'")
        .await;
    let clusters: Vec<(&str, Arc<dyn Runtime>)> =
        vec![("hangs", hangs.clone()), (CLUSTER, world.driver.clone())];
    let replica = world.replica_of(clusters, settings).await;
    eventually("the cluster hangs", SOON, async || {
        hangs.ensure_calls.load(Ordering::SeqCst) > 0
    })
    .await;
    world.wait_for_status(&ids[2], Status::Running, SOON).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_without_a_running_scheduler_is_recorded_by_the_next() {
    let world = World::new().await;
    let mut replica = world.process();
    world.wait_until_ready().await;
    let mut wanted = request("unwatched");
    let script = "until [ -e /tmp/end ]; do sleep 0.1; done; exit 5";
    wanted.command = Some(vec!["sh".into(), "-c".into(), script.into()]);
    let created = world.create(wanted).await;
    let running = world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    replica.kill();
    start(&world, &running, "sleep 0.5; touch /tmp/end").await;
    eventually("its command has ended", SOON, async || {
        let seen = world.driver.get(&created.id).await.unwrap().unwrap();
        matches!(seen.phase, agentbox_runtime::BoxPhase::Exited { .. })
    })
    .await;
    let next = world.replica().await;
    let failed = world
        .wait_for_status(&created.id, Status::Failed, SOON)
        .await;
    assert_eq!(
        (failed.status_reason, failed.exit_code),
        (Some(StatusReason::Exited), Some(5))
    );
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn end_without_exec_proxy_waits_for_its_archive_for_a_limited_time() {
    let mut world = World::new().await;
    world.kill_exec_proxy();
    let replica = world.replica().await;
    let mut wanted = request("no-archive");
    wanted.command = Some(vec!["true".into()]);
    let created = world.create(wanted).await;
    eventually("its command has ended", SOON, async || {
        let seen = world.driver.get(&created.id).await.unwrap();
        seen.is_some_and(|seen| matches!(seen.phase, agentbox_runtime::BoxPhase::Exited { .. }))
    })
    .await;
    assert!(
        !world.get(&created.id).await.status.is_ended(),
        "its output may still be archived"
    );
    let ended = world
        .wait_for_status(&created.id, Status::Terminated, Duration::from_secs(60))
        .await;
    let waited = chrono::Utc::now() - ended.ended_at.unwrap();
    assert!(waited >= chrono::TimeDelta::seconds(29), "{waited}");
    world.wait_for_box_removal(&created.id).await;
    replica.stop().await;
}

fn policy_patch(environment: &Environment) -> PatchRequest {
    PatchRequest {
        id: environment.id.clone(),
        name: None,
        labels: None,
        timeout_s: None,
        idle_timeout_s: None,
        network_policy: Some(NetworkPolicy::default()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_one_owner_that_wait_are_bounded_and_leave_places_to_others() {
    const AT_ONCE: usize = 8;
    const SENT: usize = 80;
    let mut world = World::new().await;
    let gate = Gate::new(world.driver.clone(), 8);
    let replica = world.replica_with(gate.clone(), settings()).await;
    let created = world.create(request("policies")).await;
    world.owner = UserId::random();
    let of_other = world.create(request("other")).await;
    for environment in [&created, &of_other] {
        world
            .wait_for_status(&environment.id, Status::Running, SOON)
            .await;
    }
    assert_eq!(gate.policies.forget_permits(POLICIES), POLICIES);
    let refused = Arc::new(AtomicUsize::new(0));
    let mut patches = JoinSet::new();
    // A few at once, because each changes the same row.
    for sent in (AT_ONCE..=SENT).step_by(AT_ONCE) {
        for _ in 0..AT_ONCE {
            let request = policy_patch(&created);
            let (gateway, refused) = (world.gateway.clone(), refused.clone());
            patches.spawn(async move {
                loop {
                    match gateway.call::<Patch>(&request, CALL).await {
                        Err(error) if error.message.contains("one owner may have") => {
                            refused.fetch_add(1, Ordering::SeqCst);
                            return;
                        }
                        // Nothing was stored: the row changed each time, or a connection was not free
                        // in time.
                        Err(error)
                            if error.code != ErrorCode::Timeout
                                && !error.message.contains("is stored") => {}
                        _ => return,
                    }
                }
            });
        }
        eventually("the changes are stored", SOON, async || {
            let waiting = gate.policy_calls.load(Ordering::SeqCst);
            waiting + refused.load(Ordering::SeqCst) >= sent
        })
        .await;
    }
    assert!(refused.load(Ordering::SeqCst) > 0);
    // Other requests are answered meanwhile, and changes of another owner have places.
    assert_eq!(world.get(&created.id).await.status, Status::Running);
    let (gateway, request) = (world.gateway.clone(), policy_patch(&of_other));
    let other = tokio::spawn(async move { gateway.call::<Patch>(&request, CALL).await });
    let store = &world.database.store;
    eventually(
        "the change of the other owner is stored",
        SOON,
        async || {
            let record = store.get(&of_other.id).await;
            record
                .unwrap()
                .is_some_and(|record| record.network_policy_pending)
        },
    )
    .await;
    gate.policies.add_permits(POLICIES);
    if let Err(error) = other.await.unwrap() {
        assert!(
            !error.message.contains("wait for their clusters"),
            "{error}"
        );
    }
    while patches.join_next().await.is_some() {}
    for id in [&created.id, &of_other.id] {
        eventually("the last policy is applied", SOON, async || {
            let record = store.get(id).await;
            record
                .unwrap()
                .is_some_and(|record| !record.network_policy_pending)
        })
        .await;
    }
    replica.stop().await;
}
