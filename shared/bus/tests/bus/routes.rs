//! The route table and its mirrors.

use std::time::Duration;

use agentbox_bus::{Bus, RouteTable};
use agentbox_contracts::environment::{Route, Status};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::subjects::ROUTES_BUCKET;
use agentbox_testing::{NatsEndpoint, System, TestNats};
use async_nats::jetstream::kv::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{connect, connect_with_all_access, eventually, eventually_async};

/// A route bucket on a NATS of its own, because the tests read the whole bucket.
struct Table {
    _system: System,
    nats: NatsEndpoint,
    scheduler: Bus,
    /// May also change streams.
    admin: Bus,
}

struct Mirror {
    routes: RouteTable,
    gateway: Bus,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Table {
    async fn new() -> Self {
        let (system, nats) = TestNats::own().await.unwrap();
        let scheduler = connect(&nats, "scheduler").await;
        let admin = connect_with_all_access(&nats).await;
        Self {
            _system: system,
            nats,
            scheduler,
            admin,
        }
    }

    async fn without_bucket() -> Self {
        let table = Self::new().await;
        let jetstream = table.admin.jetstream();
        jetstream.delete_key_value(ROUTES_BUCKET).await.unwrap();
        table
    }

    async fn bucket(&self) -> Store {
        let jetstream = self.scheduler.jetstream();
        jetstream.get_key_value(ROUTES_BUCKET).await.unwrap()
    }

    /// Routes and markers in the bucket.
    async fn stored(&self) -> u64 {
        self.bucket().await.status().await.unwrap().values()
    }

    async fn put(&self) -> (EnvironmentId, Route) {
        let (id, route) = (EnvironmentId::random(), route());
        self.scheduler.put_route(&id, &route).await.unwrap();
        (id, route)
    }

    async fn mirror(&self) -> Mirror {
        let gateway = connect(&self.nats, "api-gateway").await;
        let mirror = gateway.mirror_routes();
        let shutdown = CancellationToken::new();
        let until = shutdown.clone();
        Mirror {
            routes: mirror.table(),
            gateway,
            shutdown,
            task: tokio::spawn(async move { mirror.run(until).await }),
        }
    }
}

impl Mirror {
    async fn synced(&self) {
        eventually("the mirror is synced", || self.routes.is_synced()).await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

fn route() -> Route {
    Route {
        owner: UserId::random(),
        status: Status::Running,
        cluster: "local".to_owned(),
        address: Some("10.0.0.7:7000".parse().unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_reads_stored_routes_and_follows_changes() {
    let table = Table::new().await;
    let (kept, route_of_kept) = table.put().await;
    let (deleted, _) = table.put().await;
    table.scheduler.delete_route(&deleted).await.unwrap();
    let mirror = table.mirror().await;
    mirror.synced().await;
    assert_eq!(mirror.routes.get(&kept), Some(route_of_kept));
    assert_eq!(mirror.routes.len(), 1);

    let (added, route_of_added) = table.put().await;
    let is_there = || mirror.routes.get(&added) == Some(route_of_added.clone());
    eventually("the new route is mirrored", is_there).await;
    let changed = route();
    table.scheduler.put_route(&kept, &changed).await.unwrap();
    let is_changed = || mirror.routes.get(&kept) == Some(changed.clone());
    eventually("the changed route is mirrored", is_changed).await;
    table.scheduler.delete_route(&added).await.unwrap();
    let is_gone = || mirror.routes.get(&added).is_none();
    eventually("the deleted route is removed", is_gone).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_of_empty_or_later_bucket_becomes_synced() {
    let table = Table::without_bucket().await;
    let mirror = table.mirror().await;
    assert!(!mirror.routes.is_synced());
    table.admin.provision().await.unwrap();
    mirror.synced().await;
    assert!(mirror.routes.is_empty());
    let (id, route) = table.put().await;
    let is_there = || mirror.routes.get(&id) == Some(route.clone());
    eventually("the first route is mirrored", is_there).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_route_leaves_marker_that_expires() {
    let table = Table::new().await;
    let (id, _) = table.put().await;
    table.scheduler.delete_route(&id).await.unwrap();
    let bucket = table.bucket().await;
    let subject = format!("$KV.{ROUTES_BUCKET}.{id}");
    let marker = bucket
        .stream
        .get_last_raw_message_by_subject(&subject)
        .await;
    let marker = marker.unwrap();
    assert!(marker.headers.get("Nats-TTL").is_some());

    // The same with a shorter TTL: nothing is left afterwards.
    let short = Duration::from_secs(5);
    bucket.purge_with_ttl(id.as_str(), short).await.unwrap();
    assert_eq!(table.stored().await, 1);
    eventually_async("the marker has expired", async || table.stored().await == 0).await;
    let mirror = table.mirror().await;
    mirror.synced().await;
    assert!(mirror.routes.is_empty());
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bucket_without_marker_expiry_is_updated() {
    let table = Table::without_bucket().await;
    let old = async_nats::jetstream::kv::Config {
        bucket: ROUTES_BUCKET.to_owned(),
        history: 1,
        ..Default::default()
    };
    let jetstream = table.admin.jetstream();
    jetstream.create_key_value(old).await.unwrap();
    let (kept, route) = table.put().await;
    table.admin.provision().await.unwrap();
    table.admin.provision().await.unwrap();
    let (deleted, _) = table.put().await;
    table.scheduler.delete_route(&deleted).await.unwrap();
    let mirror = table.mirror().await;
    mirror.synced().await;
    assert_eq!(mirror.routes.get(&kept), Some(route));
    assert_eq!(mirror.routes.len(), 1);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reconnected_mirror_removes_routes_deleted_without_marker() {
    let table = Table::new().await;
    let (gone, _) = table.put().await;
    let mirror = table.mirror().await;
    mirror.synced().await;
    assert!(mirror.routes.get(&gone).is_some());
    // As when its marker has expired during an outage: a watch does not report that.
    let jetstream = table.admin.jetstream();
    let bucket = jetstream.get_key_value(ROUTES_BUCKET).await.unwrap();
    bucket.stream.purge().await.unwrap();
    let (kept, _) = table.put().await;
    mirror.gateway.client().force_reconnect().await.unwrap();
    let is_read_again = || mirror.routes.get(&gone).is_none() && mirror.routes.get(&kept).is_some();
    eventually("everything is read again", is_read_again).await;
    mirror.synced().await;
    mirror.stop().await;
}
