//! Helpers of all tests: a database, replicas of auth, and their callers.

mod callers;
mod replica;

use std::time::Duration;

use agentbox_contracts::ids::UserId;
use agentbox_testing::{PostgresEndpoint, TestPostgres};
use sea_orm::{ConnectionTrait, DatabaseConnection};

pub use agentbox_testing::eventually;
pub use callers::{ADMIN, ADMIN_PASSWORD, Caller, PASSWORD, refused};
pub use replica::{CONNECTIONS, Replica};

/// A database of the test's own, and replicas of auth on it.
///
/// Each replica has a NATS server of its own, so that a test chooses the replica that it calls.
pub struct World {
    pub url: String,
    pub postgres: PostgresEndpoint,
    pub database: DatabaseConnection,
    pub replicas: Vec<Replica>,
}

impl World {
    pub async fn start() -> Self {
        Self::with(1, &[]).await
    }

    /// Starts `replicas` at the same time, with further variables in `environment`.
    pub async fn with(replicas: usize, environment: &[(&str, &str)]) -> Self {
        let TestPostgres {
            url,
            endpoint: postgres,
        } = TestPostgres::start().await.unwrap();
        let starting = (0..replicas).map(|_| Replica::start(&url, environment));
        let replicas = futures::future::join_all(starting).await;
        let database = agentbox_database::connect(&url, "auth", 2).await.unwrap();
        Self {
            url,
            postgres,
            database,
            replicas,
        }
    }

    pub fn auth(&self) -> &Replica {
        &self.replicas[0]
    }

    /// Runs a statement on auth's schema. Returns the number of affected rows.
    pub async fn execute(&self, sql: &str) -> u64 {
        self.database
            .execute_unprepared(sql)
            .await
            .unwrap()
            .rows_affected()
    }

    /// Runs a query that returns one number.
    pub async fn count(&self, sql: &str) -> i64 {
        let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, sql);
        let row = self
            .database
            .query_one_raw(statement)
            .await
            .unwrap()
            .unwrap();
        row.try_get_by_index(0).unwrap()
    }

    /// Waits until this many entries of a user are in the audit log.
    pub async fn wait_for_audit(&self, actor: &UserId, entries: i64) {
        let chained = format!("SELECT count(*) FROM audit_log WHERE actor = '{actor}'");
        eventually("chained entries", Duration::from_secs(30), async || {
            self.count(&chained).await == entries
        })
        .await;
    }

    /// Runs a query that returns one text.
    pub async fn text(&self, sql: &str) -> String {
        let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, sql);
        let row = self
            .database
            .query_one_raw(statement)
            .await
            .unwrap()
            .unwrap();
        row.try_get_by_index(0).unwrap()
    }
}
