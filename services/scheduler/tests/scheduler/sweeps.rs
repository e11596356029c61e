//! Orphaned and lost boxes, on a real containerd.

use std::time::Duration;

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::{BoxPhase, BoxSpec, Isolation, Resources};

use crate::support::cluster::World;
use crate::support::request;

const SOON: Duration = Duration::from_secs(20);

fn spec(id: &EnvironmentId) -> BoxSpec {
    BoxSpec {
        id: id.clone(),
        warm: false,
        owner: UserId::random(),
        image: "busybox".into(),
        command: None,
        use_entrypoint: false,
        env: Default::default(),
        labels: Default::default(),
        resources: Resources {
            cpu: MilliCpu(100),
            memory: Bytes(64 << 20),
            storage: Bytes(64 << 20),
            pids: 64,
        },
        isolation: Isolation::default(),
        node_selector: Default::default(),
        tolerations: vec![],
        boxd_token: "a-token".into(),
        image_credential: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orphaned_box_is_removed_and_an_active_one_is_kept() {
    let world = World::new().await;
    let orphan = EnvironmentId::random();
    world.driver.ensure(&spec(&orphan), 1).await.unwrap();
    let replica = world.replica().await;
    let active = world.create(request("active")).await;
    world
        .wait_for_status(&active.id, Status::Running, SOON)
        .await;
    world.wait_for_box_removal(&orphan).await;
    let left = world.driver.get(&active.id).await.unwrap().unwrap();
    assert!(matches!(left.phase, BoxPhase::Running { .. }), "{left:?}");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_box_fails_the_environment_and_is_not_created_again() {
    let world = World::new().await;
    let mut watching = world.process();
    world.wait_until_ready().await;
    let created = world.create(request("vanishes")).await;
    world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    // No replica observes the removal. The next one finds no box, as after the loss of a node.
    watching.kill();
    world.driver.remove(&created.id).await.unwrap();
    let replica = world.replica().await;
    let failed = world
        .wait_for_status(&created.id, Status::Failed, SOON)
        .await;
    assert_eq!(failed.status_reason, Some(StatusReason::NodeLost));
    assert_eq!(
        failed.exit_code, None,
        "there is no exit code of a lost box"
    );
    assert!(world.driver.list().await.unwrap().is_empty());
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn box_of_an_ended_environment_is_removed_when_created_late() {
    let world = World::new().await;
    let replica = world.replica().await;
    let created = world.create(request("late")).await;
    world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    let delete = agentbox_contracts::environment::rpc::DeleteRequest {
        id: created.id.clone(),
        force: true,
    };
    world
        .gateway
        .call::<agentbox_contracts::environment::rpc::Delete>(&delete, Duration::from_secs(5))
        .await
        .unwrap();
    world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;
    // As by a replica that was suspended until its claim had expired.
    world.driver.ensure(&spec(&created.id), 1).await.unwrap();
    world.wait_for_box_removal(&created.id).await;
    replica.stop().await;
}
