//! Schedulers within the test process, on a real bus and database.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::secret::BoxSecret;
use agentbox_bus::{Bus, BusConfig};
use agentbox_clusters::DriverKind;
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::units::Bytes;
use agentbox_runtime::Runtime;
use agentbox_scheduler::Scheduler;
use agentbox_scheduler::cluster::config::Overcommit;
use agentbox_scheduler::cluster::registries::AllowedRegistries;
use agentbox_scheduler::cluster::registry::{Cluster, Clusters};
use agentbox_scheduler::config::Settings;
use agentbox_scheduler::environment::handlers::Environments;
use agentbox_scheduler::environment::outbox::outbox;
use agentbox_scheduler::environment::quota::Quota;
use agentbox_scheduler::environment::reconcile::Reconciler;
use agentbox_scheduler::environment::spec::BoxDefaults;
use agentbox_testing::{NatsEndpoint, TestNats};
use futures::FutureExt as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Database;

/// 32 bytes in hex.
pub const BOX_SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

pub async fn bus(nats: &NatsEndpoint, service: &'static str) -> Bus {
    let config = BusConfig {
        url: nats.url.clone(),
        tls_ca: nats.tls_ca.clone(),
        user: service.to_owned(),
        password: nats.passwords[service].clone(),
        service,
        instance: InstanceId::random(),
    };
    Bus::connect(config).await.unwrap()
}

/// The scheduler's bus on the server that tests share.
pub async fn shared_bus() -> Bus {
    bus(&TestNats::shared().await.unwrap(), "scheduler").await
}

pub fn settings() -> Settings {
    let secret: BoxSecret = BOX_SECRET.parse().unwrap();
    Settings {
        quota: Quota::default(),
        max_storage: Some(Bytes(1 << 40)),
        boxes: BoxDefaults { pids: 128, secret },
        start_timeout: Duration::from_secs(60),
        stop_grace: Duration::from_secs(10),
        resync_interval: Duration::from_secs(1),
        retention: Duration::from_secs(7 * 24 * 3600),
        pool_box_max_age: Duration::from_secs(3600),
        max_reconciles: 16,
    }
}

/// The handlers alone, without a cluster; nothing is published.
pub async fn environments(database: &Database) -> Environments {
    let (store, clusters) = (database.store.clone(), Clusters::default());
    let bus = shared_bus().await;
    let (outbox, _) = outbox(store.clone(), bus.clone());
    let reconciler = Reconciler::new(
        store.clone(),
        clusters.clone(),
        bus,
        outbox.clone(),
        settings(),
        CancellationToken::new(),
    );
    Environments::new(store, clusters, outbox, reconciler, settings())
}

/// One replica.
pub struct Replica {
    tasks: Vec<JoinHandle<()>>,
    shutdown: CancellationToken,
}

impl Replica {
    pub async fn start(
        database: &Database,
        nats: &NatsEndpoint,
        runtimes: Vec<(&str, Arc<dyn Runtime>)>,
        settings: Settings,
    ) -> Self {
        let bus = bus(nats, "scheduler").await;
        let overcommit = Overcommit {
            cpu: 1_000.0,
            memory: 1_000.0,
            storage: 1_000.0,
        };
        let clusters = Clusters::new(runtimes.iter().map(|(name, _)| {
            Cluster::new(
                name,
                DriverKind::Containerd,
                BTreeMap::new(),
                overcommit,
                AllowedRegistries::default(),
            )
        }));
        let shutdown = CancellationToken::new();
        let scheduler = Scheduler::new(
            database.store.clone(),
            clusters,
            bus,
            settings,
            shutdown.clone(),
        );
        let runtimes = runtimes
            .into_iter()
            .map(|(name, runtime)| (name.to_owned(), runtime))
            .collect();
        let mut tasks = Vec::new();
        scheduler
            .start(runtimes, None, |_, task| {
                tasks.push(tokio::spawn(task.map(Result::unwrap)));
            })
            .await
            .unwrap();
        Self { tasks, shutdown }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        let ended = futures::future::try_join_all(self.tasks);
        tokio::time::timeout(Duration::from_secs(15), ended)
            .await
            .unwrap()
            .unwrap();
    }
}
