//! Helpers of all tests: a database, requests, and waiting.

pub mod cluster;
pub mod scheduler;

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::environment::rpc::CreateRequest;
use agentbox_contracts::environment::{EnvironmentRequest, ResourceRequest};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_database::secret::MasterSecret;
use agentbox_scheduler::environment::creation::Creation;
use agentbox_scheduler::environment::store::Store;
use agentbox_scheduler::migrations::Migrator;
use agentbox_testing::TestPostgres;
pub use agentbox_testing::eventually;
use chrono::{SubsecRound as _, Utc};
use futures::{StreamExt as _, stream};
use sea_orm::DatabaseConnection;

/// The size of a test's pool.
const CONNECTIONS: u32 = 10;
/// How long a statement of a test waits for a connection: longer than the machine stalls.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

/// A database of this test's own.
pub struct Database {
    pub url: String,
    pub connection: DatabaseConnection,
    pub store: Store,
}

pub async fn database() -> Database {
    let url = TestPostgres::start().await.unwrap().url;
    let connected =
        agentbox_database::connect_within(&url, "scheduler", CONNECTIONS, ACQUIRE_TIMEOUT);
    let connection = connected.await.unwrap();
    Database::migrated(url, connection).await
}

/// As [`database`], with the pool of a scheduler: a request that gets no connection soon is refused.
pub async fn database_of_a_scheduler() -> Database {
    let url = TestPostgres::start().await.unwrap().url;
    let connected = agentbox_database::connect(&url, "scheduler", CONNECTIONS);
    let connection = connected.await.unwrap();
    Database::migrated(url, connection).await
}

/// The secret of 32 times `byte`.
pub fn secret(byte: u8) -> MasterSecret {
    hex::encode([byte; 32]).parse().unwrap()
}

impl Database {
    async fn migrated(url: String, connection: DatabaseConnection) -> Self {
        agentbox_database::migrate::<Migrator>(&connection, "scheduler")
            .await
            .unwrap();
        Self {
            url,
            store: Store::new(connection.clone(), secret(1)),
            connection,
        }
    }

    /// The store of another replica, which has `connections` of its own.
    pub async fn replica(&self, connections: u32) -> Store {
        let connection = agentbox_database::connect(&self.url, "scheduler", connections)
            .await
            .unwrap();
        Store::new(connection, secret(1))
    }

    pub async fn execute(&self, sql: &str) {
        use sea_orm::ConnectionTrait as _;
        self.connection.execute_unprepared(sql).await.unwrap();
    }

    /// The first column of the first row.
    pub async fn number(&self, sql: &str) -> i64 {
        use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
        let statement = Statement::from_string(DbBackend::Postgres, sql);
        let row = self
            .connection
            .query_one_raw(statement)
            .await
            .unwrap()
            .unwrap();
        row.try_get_by_index(0).unwrap()
    }
}

/// Does `work` `count` times, as many at once as the pool has connections: more would wait for one,
/// and that wait has a deadline.
pub async fn concurrently<T>(count: usize, work: impl AsyncFn(usize) -> T) -> Vec<T> {
    let work = &work;
    stream::iter(0..count)
        .map(|n| async move { work(n).await })
        .buffer_unordered(CONNECTIONS as usize)
        .collect()
        .await
}

/// A small request for a busybox.
pub fn request(name: &str) -> EnvironmentRequest {
    EnvironmentRequest {
        name: name.into(),
        image: "busybox".into(),
        resources: ResourceRequest {
            cpu: "100m".into(),
            memory: "64Mi".into(),
            storage: "64Mi".into(),
        },
        timeout_s: 600,
        idle_timeout_s: None,
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        command: None,
        use_entrypoint: false,
        labels: BTreeMap::new(),
        node_selector: BTreeMap::new(),
        tolerations: vec![],
        isolation: None,
    }
}

/// What `owner` asks for, in the cluster `test`, with five minutes to start.
pub fn creation(owner: &UserId, request: EnvironmentRequest) -> Creation {
    let request = CreateRequest {
        owner: owner.clone(),
        owner_username: "somebody".into(),
        request,
        idempotency_key: None,
        limits: Default::default(),
    };
    // The precision of Postgres, so that a row is read as it was written.
    let now = Utc::now().trunc_subsecs(6);
    let start_timeout = Duration::from_secs(300);
    let mut creation = Creation::new(EnvironmentId::random(), request, start_timeout, now).unwrap();
    creation.environment.cluster = "test".into();
    creation
}
