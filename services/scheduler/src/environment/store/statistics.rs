//! Counts of rows, for the metrics.

use std::collections::BTreeMap;

use agentbox_database::sql::statement;
use sea_orm::{ConnectionTrait, FromQueryResult};

use super::{Store, StoreError};

/// The owners that are reported by name: those who have reserved the most CPU.
const NAMED_OWNERS: i64 = 10;

/// What the database has now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Environments that have not ended.
    pub environments: Vec<StatusCount>,
    /// What the environments of each owner have reserved; `other` for those who are not named.
    pub owners: Vec<OwnerUse>,
    /// Outbox rows that are not published yet.
    pub outbox: Backlog,
    /// Environments that are due, by cluster. A cluster without one is missing.
    pub due: BTreeMap<String, Backlog>,
}

#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct StatusCount {
    pub cluster: String,
    pub status: String,
    pub count: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct OwnerUse {
    pub owner: String,
    pub environments: i64,
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
}

/// Rows that wait, and for how many seconds the oldest one has.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromQueryResult)]
pub struct Backlog {
    pub count: i64,
    pub oldest_s: f64,
}

#[derive(FromQueryResult)]
struct DueRow {
    cluster: String,
    count: i64,
    oldest_s: f64,
}

impl Store {
    /// Counts rows. No span of its own: it is no part of a request.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn statistics(&self) -> Result<Statistics, StoreError> {
        Ok(Statistics {
            environments: self.environments_by_status().await?,
            owners: self.use_by_owner().await?,
            outbox: self.outbox_backlog().await?,
            due: self.due_by_cluster().await?,
        })
    }

    /// Every environment that has not ended is in the reconcile queue.
    async fn environments_by_status(&self) -> Result<Vec<StatusCount>, StoreError> {
        let counts = statement(
            "SELECT environments.cluster, status, count(*) AS count
             FROM reconcile_queue JOIN environments ON id = environment_id
             WHERE status IN ('pending', 'running', 'terminating')
             GROUP BY environments.cluster, status ORDER BY environments.cluster, status",
            [],
        );
        let mut rows = Vec::new();
        for row in self.database.query_all_raw(counts).await? {
            rows.push(StatusCount::from_query_result(&row, "")?);
        }
        Ok(rows)
    }

    async fn use_by_owner(&self) -> Result<Vec<OwnerUse>, StoreError> {
        let used = statement(
            "WITH used AS (
                SELECT owner, count(*) AS environments, sum(cpu_milli) AS cpu_milli,
                    sum(memory_bytes) AS memory_bytes, sum(storage_bytes) AS storage_bytes
                FROM environments WHERE status IN ('pending', 'running', 'terminating')
                GROUP BY owner
             ), ranked AS (
                SELECT *, row_number() OVER (ORDER BY cpu_milli DESC, owner) <= $1 AS is_named
                FROM used
             )
             SELECT CASE WHEN is_named THEN owner ELSE 'other' END AS owner,
                sum(environments)::bigint AS environments, sum(cpu_milli)::bigint AS cpu_milli,
                sum(memory_bytes)::bigint AS memory_bytes,
                least(sum(storage_bytes), 9223372036854775807)::bigint AS storage_bytes
             FROM ranked GROUP BY 1 ORDER BY 1",
            [NAMED_OWNERS.into()],
        );
        let mut rows = Vec::new();
        for row in self.database.query_all_raw(used).await? {
            rows.push(OwnerUse::from_query_result(&row, "")?);
        }
        Ok(rows)
    }

    async fn outbox_backlog(&self) -> Result<Backlog, StoreError> {
        let pending = statement(
            "SELECT count(*) AS count,
                coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS oldest_s
             FROM outbox WHERE published_at IS NULL",
            [],
        );
        match self.database.query_one_raw(pending).await? {
            Some(row) => Ok(Backlog::from_query_result(&row, "")?),
            None => Ok(Backlog::default()),
        }
    }

    async fn due_by_cluster(&self) -> Result<BTreeMap<String, Backlog>, StoreError> {
        let due = statement(
            "SELECT cluster, count(*) AS count,
                extract(epoch FROM now() - min(due_at))::float8 AS oldest_s
             FROM reconcile_queue WHERE due_at <= now() GROUP BY cluster",
            [],
        );
        let mut backlogs = BTreeMap::new();
        for row in self.database.query_all_raw(due).await? {
            let DueRow {
                cluster,
                count,
                oldest_s,
            } = DueRow::from_query_result(&row, "")?;
            backlogs.insert(cluster, Backlog { count, oldest_s });
        }
        Ok(backlogs)
    }
}
