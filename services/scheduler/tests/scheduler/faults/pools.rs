//! Pools whose image cannot be pulled.

use std::sync::atomic::Ordering;

use agentbox_contracts::pool::{PoolSpec, PoolStatus};
use agentbox_testing::eventually_some;
use chrono::{TimeDelta, Utc};
use futures::future::join_all;

use super::SOON;
use super::gate::{BUSY_REGISTRY, Gate};
use crate::pools::{pool_named, set_pool_named, spec};
use crate::support::cluster::World;
use crate::support::scheduler::settings;

const MISSING: &str = "agentbox-scheduler/no-such-image:1";

/// The status of a pool after more than `failures` failed starts, when no box of it is left.
async fn after_failures(world: &World, pool: &str, failures: u32) -> PoolStatus {
    eventually_some("a start fails", SOON, async || {
        let status = pool_named(world, pool).await.status;
        let is_without_box = (status.starting, status.draining) == (0, 0);
        (status.failures > failures && is_without_box).then_some(status)
    })
    .await
}

/// Checks that the status of a pool has the failed starts, their reason, and pauses that become longer.
async fn expect_back_off(world: &World, pool: &str, image: &str) {
    let first = after_failures(world, pool, 0).await;
    assert_eq!(first.ready, 0, "{first:?}");
    let error = first.last_error.clone().unwrap();
    assert!(error.contains(image), "{error}");
    let second = after_failures(world, pool, first.failures).await;
    let retry_at = second.retry_at.unwrap();
    // The last start began after the first pause, and each pause is twice the one before.
    let pause = TimeDelta::seconds(1_i64 << second.failures);
    let earliest = first.retry_at.unwrap() + pause;
    assert!(retry_at >= earliest, "{first:?} {second:?}");
    assert!(retry_at <= Utc::now() + pause, "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_whose_image_cannot_be_pulled_shows_its_back_off_and_pulls_no_sooner() {
    let world = World::new().await;
    let gate = Gate::new(world.driver.clone(), 8);
    let replica = world.replica_with(gate.clone(), settings()).await;
    // A later pull of the second one may succeed.
    let pools = [("missing", MISSING), ("busy", BUSY_REGISTRY)];
    for (pool, image) in pools {
        let spec = PoolSpec {
            image: image.to_owned(),
            ..spec(1, 1)
        };
        set_pool_named(&world, pool, spec).await;
    }
    join_all(pools.map(|(pool, image)| expect_back_off(&world, pool, image))).await;
    // Each pull is a failed start, and at most one of each pool is in progress.
    let pulls = gate.ensure_calls.load(Ordering::SeqCst);
    let mut most = pools.len();
    for (pool, _) in pools {
        let failures = pool_named(&world, pool).await.status.failures;
        most += usize::try_from(failures).unwrap();
    }
    assert!(pulls <= most, "{pulls} pulls, at most {most} expected");
    replica.stop().await;
}
