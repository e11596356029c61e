//! Several replicas, one of which is killed.

use std::time::Duration;

use agentbox_contracts::environment::{Environment, EnvironmentRequest, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_scheduler::environment::quota::Quota;
use futures::future::join_all;

use crate::support::cluster::{World, is_without_answer};
use crate::support::scheduler::settings;
use crate::support::{creation, eventually, request};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn killed_replica_loses_and_duplicates_nothing() {
    let world = World::new().await;
    let (mut doomed, _survivor) = (world.process(), world.process());
    world.wait_until_ready().await;
    let creating = join_all((0..8).map(|n| {
        let world = &world;
        async move {
            world
                .create_until_answered(request(&format!("n-{n}")), SOON)
                .await
        }
    }));
    let killing = async {
        // While boxes are being created.
        eventually("boxes are being created", SOON, async || {
            world
                .driver
                .list()
                .await
                .is_ok_and(|boxes| !boxes.is_empty())
        })
        .await;
        doomed.kill();
    };
    // A request whose replica was killed gets no answer, and its client repeats it.
    let (created, ()) = tokio::join!(creating, killing);
    for environment in &created {
        world
            .wait_for_status(&environment.id, Status::Running, SOON)
            .await;
    }
    let rows = world
        .database
        .number("SELECT count(*) FROM environments")
        .await;
    assert_eq!(
        rows, 8,
        "one row for each request, however often it was sent"
    );
    let boxes = world.driver.list().await.unwrap();
    assert_eq!(
        i64::try_from(boxes.len()).unwrap(),
        rows,
        "one box for each row"
    );

    for id in active_ids(&world).await {
        world.force_delete(&id).await;
    }
    for environment in &created {
        world
            .wait_for_status(&environment.id, Status::Terminated, SOON)
            .await;
        let events = world.events(&environment.id, 4).await;
        let starts = events
            .iter()
            .filter(|event| event.status == Status::Running)
            .count();
        assert_eq!(starts, 1);
    }
}

async fn active_ids(world: &World) -> Vec<agentbox_contracts::ids::EnvironmentId> {
    world
        .database
        .store
        .active_in_cluster(crate::support::cluster::CLUSTER)
        .await
        .unwrap()
        .into_iter()
        .map(|active| active.id)
        .collect()
}

/// Repeats the create while it gets no answer.
async fn create_with_retries(
    world: &World,
    request: EnvironmentRequest,
) -> Result<Environment, Error> {
    let begun = tokio::time::Instant::now();
    loop {
        match world.try_create(request.clone()).await {
            Err(error) if is_without_answer(&error) && begun.elapsed() < SOON => {}
            outcome => return outcome,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_accept_exactly_a_users_quota() {
    const REQUESTS: usize = 40;
    let world = World::new().await;
    let settings = |quota| {
        let mut settings = settings();
        settings.quota = quota;
        settings
    };
    // An environment has 100m, and 64Mi of memory and of storage. Each quota has one limit, which accepts four of them.
    let quotas = [
        Quota {
            environments: Some(4),
            ..Quota::default()
        },
        Quota {
            cpu: Some(MilliCpu(450)),
            ..Quota::default()
        },
        Quota {
            memory: Some(Bytes(256 << 20)),
            ..Quota::default()
        },
        Quota {
            storage: Some(Bytes(256 << 20)),
            ..Quota::default()
        },
    ];
    let resources = ["environments", "CPU", "memory", "storage"];
    for (resource, quota) in resources.into_iter().zip(quotas) {
        let driver = || world.driver.clone();
        let first = world.replica_with(driver(), settings(quota)).await;
        let second = world.replica_with(driver(), settings(quota)).await;
        let outcomes = join_all((0..REQUESTS).map(|n| {
            let world = &world;
            async move { create_with_retries(world, request(&format!("n-{n}"))).await }
        }))
        .await;
        let rows = "SELECT count(*) FROM environments WHERE status IN ('pending', 'running')";
        assert_eq!(world.database.number(rows).await, 4, "{resource}");
        let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        // After a lost answer a request is repeated and refused, although it has written a row.
        assert!(refused.len() >= REQUESTS - 4, "{resource}: {refused:?}");
        for error in refused {
            assert_eq!(error.code, ErrorCode::QuotaExceeded, "{resource}: {error}");
            assert_eq!(error.code.status(), 403);
            let begin = format!("your quota of {resource} is ");
            assert!(error.message.starts_with(&begin), "{error}");
        }
        for id in active_ids(&world).await {
            world.force_delete(&id).await;
            world.wait_for_status(&id, Status::Terminated, SOON).await;
        }
        first.stop().await;
        second.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_purges_environments_past_their_retention() {
    let world = World::new().await;
    let created = |name: &str| {
        let creation = creation(&world.owner, request(name));
        let store = world.database.store.clone();
        async move { store.create(&creation).await }
    };
    let (old, recent) = (created("old"), created("recent"));
    let (old, recent) = (
        old.await.unwrap().environment,
        recent.await.unwrap().environment,
    );
    for (id, days) in [(&old.id, 8), (&recent.id, 6)] {
        let ended = format!(
            "UPDATE environments SET status = 'failed', status_reason = 'EXITED',
                ended_at = now() - interval '{days} days', box_removed = true WHERE id = '{id}'"
        );
        world.database.execute(&ended).await;
        let dequeue = format!("DELETE FROM reconcile_queue WHERE environment_id = '{id}'");
        world.database.execute(&dequeue).await;
    }
    let replica = world.replica().await;
    eventually("the old environment is purged", SOON, async || {
        let left = world.database.store.get(&old.id).await;
        left.is_ok_and(|record| record.is_none())
    })
    .await;
    assert_eq!(world.get(&recent.id).await.status, Status::Failed);
    replica.stop().await;
}
