//! Metered use of a real box, over the bus.

use std::time::Duration;

use agentbox_contracts::environment::Status;
use agentbox_contracts::exec::UsageRequest;
use agentbox_contracts::exec::rpc::MeterUsage;
use agentbox_contracts::ids::UserId;
use agentbox_contracts::metering::rpc::{ReadUsage, ReadUsageReply, ReadUsageRequest};
use chrono::{TimeDelta, Utc};

use crate::support::cluster::{CALL, CLUSTER, World};
use crate::support::{eventually, request};

const SOON: Duration = Duration::from_secs(20);
/// How many boxes are run until one is metered.
const ATTEMPTS: usize = 3;

async fn usage(world: &World) -> ReadUsageReply {
    let request = ReadUsageRequest {
        owner: world.owner.clone(),
        since: Utc::now() - TimeDelta::hours(2),
        until: Utc::now() + TimeDelta::seconds(1),
        group_by: Some("team".to_owned()),
    };
    world.ask::<ReadUsage>(&request).await.unwrap()
}

/// Runs a box of a new owner to its deletion.
async fn run_and_delete(world: &mut World) {
    world.owner = UserId::random();
    let mut wanted = request("metered");
    wanted.labels.insert("team".into(), "a".into());
    let created = world.create(wanted).await;
    let running = world.wait_for_status(&created.id, Status::Running, SOON);
    let asked = UsageRequest {
        environment: created.id.clone(),
        address: running.await.address.unwrap(),
    };
    // The box is asked once before the stop, which the exec-proxy, a process, must be ready for.
    eventually("the exec-proxy answers", SOON, async || {
        let counters = world
            .gateway
            .call_cluster::<MeterUsage>(CLUSTER, &asked, CALL)
            .await;
        counters.is_ok_and(|counters| counters.cpu_usage_ns > 0)
    })
    .await;
    world.force_delete(&created.id).await;
    world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn box_is_metered_before_it_is_stopped() {
    let mut world = World::new().await;
    let replica = world.replica().await;
    // Before its stop a box is asked once. On a machine that stalls it may not answer in time.
    let mut attempt = 1;
    loop {
        run_and_delete(&mut world).await;
        if usage(&world).await.total.cpu_seconds > 0.0 {
            break;
        }
        assert!(attempt < ATTEMPTS, "no box was metered");
        attempt += 1;
    }
    // The running time may be metered between the two sums of one answer.
    eventually("the only group has the whole use", SOON, async || {
        let used = usage(&world).await;
        assert_eq!(used.total.environments, 1);
        assert_eq!(used.groups.len(), 1);
        assert_eq!(used.groups[0].value.as_deref(), Some("a"));
        used.groups[0].usage == used.total
    })
    .await;
    replica.stop().await;
}
