//! Creates while the cluster does not answer: until its capacity is too old, and after that.

use std::time::{Duration, Instant};

use agentbox_contracts::environment::Status;
use agentbox_contracts::error::ErrorCode;
use agentbox_testing::repeat_until_below;

use super::{Gate, SOON};
use crate::support::cluster::{CLUSTER, World};
use crate::support::scheduler::settings;
use crate::support::{eventually, request};

#[tokio::test(flavor = "multi_thread")]
async fn create_without_a_reachable_cluster_is_refused() {
    let world = World::new().await;
    let gate = Gate::new(world.driver.clone(), 8);
    let replica = world.replica_with(gate.clone(), settings()).await;
    gate.set_open(false);
    eventually("creates are refused", SOON, async || {
        let refused = world.try_create(request("nowhere")).await;
        refused.is_err_and(|e| e.code == ErrorCode::Unavailable)
    })
    .await;
    gate.set_open(true);
    eventually("creates are accepted again", SOON, async || {
        world.try_create(request("somewhere")).await.is_ok()
    })
    .await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn create_waits_for_a_cluster_that_has_not_answered_yet() {
    const ATTEMPTS: usize = 3;
    for attempt in 1..=ATTEMPTS {
        let world = World::new().await;
        let gate = Gate::new(world.driver.clone(), 8);
        gate.set_open(false);
        let replica = world
            .replica_of(vec![(CLUSTER, gate.clone())], settings())
            .await;
        eventually("requests are answered", SOON, async || {
            world.health().await.is_ok()
        })
        .await;
        match gate.create_while_closed(&world).await {
            // On a machine that stalls the gate may open after the create has waited for 2 s.
            Err(error) if error.code == ErrorCode::Unavailable && attempt < ATTEMPTS => {
                replica.stop().await;
            }
            created => {
                let id = created.unwrap().id;
                world.wait_for_status(&id, Status::Running, SOON).await;
                return replica.stop().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_that_fails_to_answer_once_stays_reachable() {
    let world = World::new().await;
    let gate = Gate::new(world.driver.clone(), 8);
    let replica = world.replica_with(gate.clone(), settings()).await;
    // A capacity is valid for 4 s, and it was refreshed at most a second before.
    let valid = Duration::from_millis(2_800);
    repeat_until_below(valid, async || {
        world.wait_until_ready().await;
        let closed = Instant::now();
        gate.set_open(false);
        gate.wait_for_refused_refreshes().await;
        let health = world.health().await.unwrap();
        let created = gate.create_while_closed(&world).await;
        let took = closed.elapsed();
        if took < valid {
            assert!(health.clusters[0].connected, "{health:?}");
            let id = created.unwrap().id;
            world.wait_for_status(&id, Status::Running, SOON).await;
        }
        took
    })
    .await;
    replica.stop().await;
}
