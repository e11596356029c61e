//! Several replicas, one of which is killed.

use std::time::Duration;

use agentbox_contracts::environment::Status;
use agentbox_contracts::environment::rpc::{Delete, DeleteRequest};
use futures::future::join_all;

use crate::support::cluster::{CALL, World};
use crate::support::{eventually, request};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_loses_and_doubles_nothing() {
    let world = World::new().await;
    let (mut doomed, _survivor) = (world.process(), world.process());
    world.answers().await;
    let creating = join_all((0..8).map(|n| {
        let world = &world;
        async move { world.create_surely(request(&format!("n-{n}")), SOON).await }
    }));
    let killing = async {
        // In the midst of making boxes.
        eventually("boxes are being made", SOON, async || {
            world
                .driver
                .list()
                .await
                .is_ok_and(|boxes| !boxes.is_empty())
        })
        .await;
        doomed.kill();
    };
    // A request whose replica died has no answer: its client asks again.
    let (created, ()) = tokio::join!(creating, killing);
    for environment in &created {
        world.reaches(&environment.id, Status::Running, SOON).await;
    }
    let rows = world
        .database
        .number("SELECT count(*) FROM environments")
        .await;
    assert_eq!(rows, 8, "one row a request, however often it was asked");
    let boxes = world.driver.list().await.unwrap();
    assert_eq!(i64::try_from(boxes.len()).unwrap(), rows, "one box a row");

    for id in live_ids(&world).await {
        world
            .gateway
            .call::<Delete>(
                &DeleteRequest {
                    id: id.clone(),
                    force: true,
                },
                CALL,
            )
            .await
            .unwrap();
    }
    for environment in &created {
        world
            .reaches(&environment.id, Status::Terminated, SOON)
            .await;
        let events = world.events(&environment.id, 4).await;
        let starts = events
            .iter()
            .filter(|event| event.status == Status::Running)
            .count();
        assert_eq!(starts, 1);
    }
}

async fn live_ids(world: &World) -> Vec<agentbox_contracts::ids::EnvironmentId> {
    world
        .database
        .store
        .live_in(crate::support::cluster::CLUSTER)
        .await
        .unwrap()
        .into_iter()
        .map(|live| live.id)
        .collect()
}
