//! Cordon and drain, on a real containerd.

use std::time::Duration;

use agentbox_contracts::cluster::rpc::{
    ClusterRequest, CordonCluster, DrainCluster, DrainClusterRequest, ListClusters, UncordonCluster,
};
use agentbox_contracts::cluster::{Cluster, EnvironmentCounts, SchedulingState};
use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::rpc::Empty;
use agentbox_scheduler::cluster::scheduling::Scheduling;

use crate::support::cluster::{CLUSTER, World, is_without_answer};
use crate::support::{creation, database, eventually, request};

const SOON: Duration = Duration::from_secs(20);

async fn cordon(world: &World, cluster: &str) -> Result<Cluster, Error> {
    let request = ClusterRequest {
        cluster: cluster.to_owned(),
    };
    world.ask::<CordonCluster>(&request).await
}

async fn drain(world: &World, timeout_s: u64) -> Result<Cluster, Error> {
    let request = DrainClusterRequest {
        cluster: CLUSTER.to_owned(),
        timeout_s,
    };
    world.ask::<DrainCluster>(&request).await
}

/// The only cluster of the world.
async fn cluster(world: &World) -> Cluster {
    let reply = world.ask::<ListClusters>(&Empty {}).await;
    let mut clusters = reply.unwrap().clusters;
    assert_eq!(clusters.len(), 1);
    clusters.remove(0)
}

/// Asserts that a create is refused because of the cordon.
pub async fn expect_creates_refused(world: &World) {
    eventually("a create is answered", SOON, async || {
        let refused = world.try_create(request("refused")).await.unwrap_err();
        assert!(is_without_answer(&refused), "{refused}");
        refused.message.contains("cordoned")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cordoned_cluster_keeps_its_environments_and_takes_no_new_ones() {
    let world = World::new().await;
    let replica = world.replica().await;
    let kept = world.create(request("kept")).await;
    world.wait_for_status(&kept.id, Status::Running, SOON).await;
    let cordoned = cordon(&world, CLUSTER).await.unwrap();
    assert_eq!(cordoned.state, SchedulingState::Cordoned);
    assert_eq!(cordoned.environments.running, 1);
    expect_creates_refused(&world).await;
    replica.stop().await;
    // Another replica knows of it from the database, at the latest when it has answered this question.
    let replica = world.replica().await;
    assert_eq!(cluster(&world).await.state, SchedulingState::Cordoned);
    expect_creates_refused(&world).await;
    assert_eq!(world.get(&kept.id).await.status, Status::Running);
    let uncordon = ClusterRequest {
        cluster: CLUSTER.to_owned(),
    };
    for _ in 0..2 {
        let active = world.ask::<UncordonCluster>(&uncordon).await;
        assert_eq!(active.unwrap().state, SchedulingState::Active);
    }
    world.create(request("accepted")).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_the_environments_that_are_left_at_its_deadline() {
    let world = World::new().await;
    let replica = world.replica().await;
    let left = world.create(request("left")).await;
    world.wait_for_status(&left.id, Status::Running, SOON).await;
    let draining = drain(&world, 3_600).await.unwrap();
    assert_eq!(draining.state, SchedulingState::Draining);
    assert!(draining.drain_deadline.is_some());
    assert_eq!(world.get(&left.id).await.status, Status::Running);
    drain(&world, 0).await.unwrap();
    let ended = world
        .wait_for_status(&left.id, Status::Terminated, SOON)
        .await;
    assert_eq!(ended.status_reason, Some(StatusReason::Evicted));
    eventually("the cluster is drained", SOON, async || {
        cluster(&world).await.state == SchedulingState::Drained
    })
    .await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_drain_and_unknown_cluster_are_refused() {
    let world = World::new().await;
    let replica = world.replica().await;
    let unknown = cordon(&world, "elsewhere").await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::NotFound);
    let too_long = drain(&world, 604_801).await.unwrap_err();
    assert_eq!(
        too_long.message,
        "timeout: must be between 0 and 604800 seconds, got 604801"
    );
    assert_eq!(cluster(&world).await.state, SchedulingState::Active);
    replica.stop().await;
}

#[tokio::test]
async fn environments_are_counted_and_found_by_the_drain_of_their_cluster() {
    let database = database().await;
    let store = &database.store;
    let owner = UserId::random();
    for cluster in ["one", "two", "two"] {
        let mut creation = creation(&owner, request("counted"));
        creation.environment.cluster = cluster.into();
        store.create(&creation).await.unwrap();
    }
    let pending = |pending| EnvironmentCounts {
        pending,
        ..EnvironmentCounts::default()
    };
    let counts = store.environments_by_cluster().await.unwrap();
    assert_eq!(counts["one"], pending(1));
    assert_eq!(counts["two"], pending(2));
    store.cordon("one", None).await.unwrap();
    store
        .cordon("two", Some(Duration::from_secs(3_600)))
        .await
        .unwrap();
    assert!(store.left_after_drain(10).await.unwrap().is_empty());
    store.cordon("two", Some(Duration::ZERO)).await.unwrap();
    let left = store.left_after_drain(10).await.unwrap();
    assert_eq!(left.len(), 2);
    assert!(
        left.iter()
            .all(|record| record.environment.cluster == "two")
    );
    let schedulings = store.schedulings().await.unwrap();
    assert_eq!(schedulings["one"], Scheduling::Cordoned);
    assert!(schedulings["two"].drain_deadline().is_some());
    assert!(store.uncordon("two").await.unwrap().is_some());
    assert!(store.uncordon("two").await.unwrap().is_none());
    assert!(store.left_after_drain(10).await.unwrap().is_empty());
}
