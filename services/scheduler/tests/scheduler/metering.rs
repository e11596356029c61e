//! Metered use of a real box, over the bus.

use std::time::Duration;

use agentbox_contracts::environment::Status;
use agentbox_contracts::metering::rpc::{ReadUsage, ReadUsageReply, ReadUsageRequest};
use chrono::{TimeDelta, Utc};

use crate::support::cluster::World;
use crate::support::{eventually, request};

const SOON: Duration = Duration::from_secs(20);

async fn usage(world: &World) -> ReadUsageReply {
    let request = ReadUsageRequest {
        owner: world.owner.clone(),
        since: Utc::now() - TimeDelta::hours(2),
        until: Utc::now() + TimeDelta::seconds(1),
        group_by: Some("team".to_owned()),
    };
    world.ask::<ReadUsage>(&request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn box_is_metered_before_it_is_stopped() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut wanted = request("metered");
    wanted.labels.insert("team".into(), "a".into());
    let created = world.create(wanted).await;
    world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    world.force_delete(&created.id).await;
    world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;
    eventually("its CPU time is metered", SOON, async || {
        usage(&world).await.total.cpu_seconds > 0.0
    })
    .await;
    let used = usage(&world).await;
    assert_eq!(used.total.environments, 1);
    assert_eq!(used.groups.len(), 1);
    assert_eq!(used.groups[0].value.as_deref(), Some("a"));
    assert_eq!(used.groups[0].usage, used.total);
    replica.stop().await;
}
