//! Warm pools on a real containerd.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentbox_contracts::cluster::rpc::{ClusterRequest, CordonCluster};
use agentbox_contracts::environment::{Environment, EnvironmentRequest, EventKind, Status};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::pool::rpc::{
    DeletePool, DeletePoolRequest, GetPool, GetPoolRequest, SetPool, SetPoolRequest,
};
use agentbox_contracts::pool::{MissReason, Pool, PoolSpec, PoolUse};
use futures::future::join_all;

use crate::clusters::expect_creates_refused;
use crate::support::cluster::{CALL, CLUSTER, World, is_without_answer};
use crate::support::{eventually, request};

const SOON: Duration = Duration::from_secs(30);
/// A box that a killed replica was starting is continued after that replica's lease of ten seconds.
const AFTER_A_KILL: Duration = Duration::from_secs(60);
/// A digest that a cluster does not report in time is read again after 30 seconds.
const AFTER_DIGESTS: Duration = Duration::from_secs(60);
const POOL: &str = "busybox";
/// How often [`create_in_ready_box`] tries.
const ATTEMPTS: usize = 3;

/// The definition of a pool of the boxes of [`request`].
pub fn spec(min_ready: u32, max_ready: u32) -> PoolSpec {
    let request = request("warm");
    PoolSpec {
        image: request.image,
        resources: request.resources,
        isolation: None,
        node_selector: BTreeMap::new(),
        cluster: None,
        min_ready,
        max_ready,
    }
}

pub async fn set_pool_named(world: &World, name: &str, spec: PoolSpec) {
    let request = SetPoolRequest {
        name: name.to_owned(),
        spec,
    };
    world.ask::<SetPool>(&request).await.unwrap();
}

pub async fn pool_named(world: &World, name: &str) -> Pool {
    let request = GetPoolRequest {
        name: name.to_owned(),
    };
    world.ask::<GetPool>(&request).await.unwrap()
}

async fn set_pool(world: &World, min_ready: u32, max_ready: u32) {
    set_pool_named(world, POOL, spec(min_ready, max_ready)).await;
}

async fn pool(world: &World) -> Pool {
    pool_named(world, POOL).await
}

async fn wait_for_ready(world: &World, ready: u64) {
    wait_for_ready_within(world, ready, SOON).await;
}

async fn wait_for_ready_within(world: &World, ready: u64, within: Duration) {
    let request = GetPoolRequest {
        name: POOL.to_owned(),
    };
    eventually("the pool has its boxes", within, async || {
        match world.gateway.call::<GetPool>(&request, CALL).await {
            Ok(pool) => pool.status.ready == ready && pool.status.starting == 0,
            Err(error) if is_without_answer(&error) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
}

/// Creates an environment in one of the `ready` boxes of the pool. A box that was not reported in time,
/// or that did not answer its claim in time, because the machine stalled, is one attempt.
async fn create_in_ready_box(world: &World, ready: u64, wanted: EnvironmentRequest) -> Environment {
    let mut missed = Vec::new();
    while missed.len() < ATTEMPTS {
        wait_for_ready(world, ready).await;
        let before = boxes(world).await;
        let created = world.create(wanted.clone()).await;
        if created.status == Status::Running && created.pool == Some(PoolUse::hit(POOL)) {
            assert!(before.contains(&created.id), "{created:?}");
            return created;
        }
        world.force_delete(&created.id).await;
        world.wait_for_box_removal(&created.id).await;
        missed.push(created);
    }
    panic!("no ready box was claimed: {missed:?}");
}

/// The boxes of the cluster.
async fn boxes(world: &World) -> BTreeSet<EnvironmentId> {
    let boxes = world.driver.list().await.unwrap();
    boxes.into_iter().map(|observed| observed.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn matching_create_runs_at_once_in_a_ready_box_which_is_replaced() {
    let world = World::new().await;
    let replica = world.replica().await;
    set_pool(&world, 2, 2).await;
    let mut wanted = request("hit");
    wanted.env.insert("A".into(), "b".into());
    wanted.labels.insert("team".into(), "a".into());
    wanted.timeout_s = 60;
    let created = create_in_ready_box(&world, 2, wanted).await;
    assert!(created.started_at.unwrap() >= created.created_at);
    let lifetime = created.expires_at - created.created_at;
    assert_eq!(lifetime, chrono::TimeDelta::seconds(60));
    let events = world.events(&created.id, 2).await;
    for (event, kind) in events.iter().zip([EventKind::Created, EventKind::Running]) {
        assert_eq!(event.kind, kind);
        assert_eq!(event.pool, created.pool);
    }
    // A command that ends ends its environment, as in a box of its own.
    let mut once = request("once");
    once.command = Some(vec!["sh".into(), "-c".into(), "exit 0".into()]);
    let once = create_in_ready_box(&world, 2, once).await;
    world
        .wait_for_status(&once.id, Status::Terminated, SOON)
        .await;
    world.wait_for_box_removal(&once.id).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn create_that_misses_starts_cold_with_the_reason() {
    let world = World::new().await;
    let replica = world.replica().await;
    set_pool(&world, 0, 0).await;
    let created = world.create(request("empty")).await;
    // The answer to a repeated request may have a later status than its first event.
    let events = world.events(&created.id, 1).await;
    assert_eq!(events[0].status, Status::Pending);
    assert_eq!(created.pool, Some(PoolUse::miss(POOL, MissReason::Empty)));
    let mut large = request("large");
    large.resources.memory = "96Mi".into();
    let large = world.create(large).await;
    assert_eq!(large.pool, Some(PoolUse::miss(POOL, MissReason::Resources)));
    for missed in [&created, &large] {
        world
            .wait_for_status(&missed.id, Status::Running, SOON)
            .await;
        for event in world.events(&missed.id, 2).await {
            assert_eq!(event.pool, missed.pool, "{event:?}");
        }
    }
    let status = pool(&world).await.status;
    assert_eq!((status.hits, status.claims()), (0, 2));
    replica.stop().await;
}

/// Waits until the pool has `size` ready boxes by its demand. It never has more than `most`.
async fn wait_for_size(world: &World, size: u32, most: u32) {
    eventually("the pool has its size", SOON, async || {
        let status = pool(world).await.status;
        let has_at_most = u64::from(status.target).max(status.ready + status.starting);
        assert!(has_at_most <= u64::from(most), "{status:?}");
        status.target == size
            && status.ready == u64::from(size)
            && (status.starting, status.draining) == (0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn demand_grows_a_pool_to_its_ceiling_and_without_demand_it_shrinks_to_its_floor() {
    // In two of the minutes that decide the size there are enough in one of them.
    const CREATES: usize = 5;
    const FLOOR: u32 = 1;
    const CEILING: u32 = 3;
    let world = World::new().await;
    let replica = world.replica().await;
    set_pool(&world, FLOOR, CEILING).await;
    wait_for_size(&world, FLOOR, CEILING).await;
    let creates = join_all((0..CREATES).map(|n| world.create(request(&format!("demand-{n}")))));
    let grown = wait_for_size(&world, CEILING, CEILING);
    let (created, ()) = tokio::join!(creates, grown);
    let mut environments = BTreeSet::new();
    for created in created {
        world
            .wait_for_status(&created.id, Status::Running, SOON)
            .await;
        environments.insert(created.id);
    }
    assert_eq!(environments.len(), CREATES);
    let has_beside_environments = async |ready: u32| {
        let boxes = boxes(&world).await;
        boxes.is_superset(&environments) && boxes.len() == CREATES + ready as usize
    };
    eventually("the boxes of the ceiling", SOON, async || {
        has_beside_environments(CEILING).await
    })
    .await;
    world
        .database
        .execute("UPDATE pool_requests SET requested_at = requested_at - interval '6 minutes'")
        .await;
    wait_for_size(&world, FLOOR, CEILING).await;
    eventually("the boxes of the floor", SOON, async || {
        has_beside_environments(FLOOR).await
    })
    .await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_ready_box_is_never_handed_out() {
    let world = World::new().await;
    let replica = world.replica().await;
    set_pool(&world, 1, 1).await;
    wait_for_ready(&world, 1).await;
    let dead = boxes(&world).await.pop_first().unwrap();
    world.driver.stop(&dead, Duration::ZERO).await.unwrap();
    let created = world.create(request("after")).await;
    let running = world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    let is_replaced = created.id != dead;
    // Otherwise its claim failed, and the environment has started in a new box.
    let is_cold = running.pool == Some(PoolUse::miss(POOL, MissReason::ClaimFailed));
    assert!(is_replaced || is_cold, "{running:?}");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_boxes_outlive_the_scheduler_and_are_handed_out_by_the_next_one() {
    let world = World::new().await;
    let first = world.replica().await;
    set_pool(&world, 2, 2).await;
    wait_for_ready(&world, 2).await;
    let ready = boxes(&world).await;
    first.stop().await;
    assert_eq!(boxes(&world).await, ready);
    let second = world.replica().await;
    wait_for_ready(&world, 2).await;
    assert_eq!(boxes(&world).await, ready);
    create_in_ready_box(&world, 2, request("after")).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_box_of_an_image_with_another_digest_is_replaced() {
    let world = World::new().await;
    let first = world.replica().await;
    set_pool(&world, 1, 1).await;
    wait_for_ready(&world, 1).await;
    let outdated = boxes(&world).await;
    first.stop().await;
    let started = "UPDATE warm_boxes SET image_digest = 'sha256:of-an-older-image'
        WHERE image_digest IS NOT NULL";
    world.database.execute(started).await;
    // It reads the digests when it starts.
    let second = world.replica().await;
    eventually("the outdated box is removed", AFTER_DIGESTS, async || {
        boxes(&world).await.is_disjoint(&outdated)
    })
    .await;
    wait_for_ready(&world, 1).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cordoned_cluster_hands_out_no_ready_box_and_removes_it() {
    let world = World::new().await;
    let replica = world.replica().await;
    set_pool(&world, 1, 1).await;
    wait_for_ready(&world, 1).await;
    let cluster = ClusterRequest {
        cluster: CLUSTER.to_owned(),
    };
    world.ask::<CordonCluster>(&cluster).await.unwrap();
    expect_creates_refused(&world).await;
    eventually("its box is removed", SOON, async || {
        boxes(&world).await.is_empty()
    })
    .await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_pool_removes_its_boxes_and_keeps_claimed_ones() {
    let world = World::new().await;
    let replica = world.replica().await;
    set_pool(&world, 2, 2).await;
    let kept = create_in_ready_box(&world, 2, request("kept")).await;
    let request = DeletePoolRequest {
        name: POOL.to_owned(),
    };
    if let Err(error) = world.ask::<DeletePool>(&request).await {
        // An earlier request, whose answer was lost, has deleted it.
        assert_eq!(error.code, ErrorCode::NotFound, "{error}");
    }
    eventually("only the claimed box is left", SOON, async || {
        boxes(&world).await == BTreeSet::from([kept.id.clone()])
    })
    .await;
    assert_eq!(world.get(&kept.id).await.status, Status::Running);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scheduler_killed_during_claims_hands_out_nothing_twice_and_loses_nothing() {
    const CREATES: usize = 12;
    let world = World::new().await;
    let mut first = world.process();
    world.wait_until_ready().await;
    set_pool(&world, 4, 4).await;
    wait_for_ready(&world, 4).await;
    let creates = join_all((0..CREATES).map(|n| {
        let wanted = request(&format!("claim-{n}"));
        world.create_until_answered(wanted, SOON)
    }));
    let restart = async {
        // Some of the claims are answered, some are in progress, some have not begun.
        eventually("a box is claimed", SOON, async || {
            world
                .database
                .number("SELECT count(*) FROM environments")
                .await
                > 0
        })
        .await;
        first.kill();
        world.process()
    };
    let (created, _second) = tokio::join!(creates, restart);
    let ids: BTreeSet<&EnvironmentId> = created.iter().map(|created| &created.id).collect();
    assert_eq!(ids.len(), CREATES, "each has a box of its own");
    for created in &created {
        world
            .wait_for_status(&created.id, Status::Running, SOON)
            .await;
    }
    wait_for_ready_within(&world, 4, AFTER_A_KILL).await;
    let expected = CREATES + 4;
    eventually("no other box is left", SOON, async || {
        boxes(&world).await.len() == expected
    })
    .await;
}
