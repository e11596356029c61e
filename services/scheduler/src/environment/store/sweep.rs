//! What the sweepers look for.

use std::time::Duration;

use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_database::sql::{seconds, statement as sql};
use sea_orm::{ConnectionTrait, Statement};

use super::{COLUMNS, Record, Store, StoreError, record};

/// Rows that one statement deletes at most: sweeping never blocks others for long.
const DELETE_BATCH: i64 = 5_000;

/// An environment whose box may still be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    pub id: EnvironmentId,
    pub status: Status,
}

impl Store {
    async fn records(&self, statement: Statement) -> Result<Vec<Record>, StoreError> {
        self.database
            .query_all_raw(statement)
            .await?
            .into_iter()
            .map(record)
            .collect()
    }

    /// Environments whose lifetime is over and that were not told to end.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expired(&self, limit: u32) -> Result<Vec<Record>, StoreError> {
        let statement = sql(
            format!(
                "SELECT {COLUMNS} FROM environments
                 WHERE status IN ('pending', 'running') AND expires_at <= now()
                 ORDER BY expires_at LIMIT $1"
            ),
            [i64::from(limit).into()],
        );
        self.records(statement).await
    }

    /// What `owner` has that was not told to end.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owned_and_alive(
        &self,
        owner: &UserId,
        limit: u32,
    ) -> Result<Vec<Record>, StoreError> {
        let statement = sql(
            format!(
                "SELECT {COLUMNS} FROM environments
                 WHERE owner = $1 AND status IN ('pending', 'running') LIMIT $2"
            ),
            [owner.as_str().into(), i64::from(limit).into()],
        );
        self.records(statement).await
    }

    /// Every environment of a cluster that has a box, or had one that may still be there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn live_in(&self, cluster: &str) -> Result<Vec<Live>, StoreError> {
        let statement = sql(
            "SELECT id, status FROM drives JOIN environments ON id = environment_id
             WHERE drives.cluster = $1",
            [cluster.into()],
        );
        let mut live = Vec::new();
        for row in self.database.query_all_raw(statement).await? {
            let (id, status): (String, String) =
                (row.try_get("", "id")?, row.try_get("", "status")?);
            if let (Ok(id), Ok(status)) = (id.parse(), status.parse::<Status>()) {
                live.push(Live { id, status });
            }
        }
        Ok(live)
    }

    /// Of `ids`, those that have ended and whose box was seen gone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finished_among(
        &self,
        ids: &[EnvironmentId],
    ) -> Result<Vec<EnvironmentId>, StoreError> {
        let statement = sql(
            "SELECT id FROM environments
             WHERE id IN (SELECT jsonb_array_elements_text($1))
               AND status IN ('terminated', 'failed') AND box_removed",
            [serde_json::to_value(ids)?.into()],
        );
        let rows = self.database.query_all_raw(statement).await?;
        let ids = rows.iter().map(|row| row.try_get::<String>("", "id"));
        Ok(ids
            .collect::<Result<Vec<_>, _>>()?
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect())
    }

    /// Deletes what is past its retention: environments ended for longer than
    /// `retention`, published outbox rows, idempotency keys. Returns how many rows went.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget(&self, retention: Duration) -> Result<u64, StoreError> {
        let mut gone = 0;
        for statement in [
            sql(
                "DELETE FROM environments WHERE id IN (
                    SELECT id FROM environments
                    WHERE ended_at < now() - make_interval(secs => $1) AND box_removed
                    LIMIT $2)",
                [seconds(retention), DELETE_BATCH.into()],
            ),
            sql(
                "DELETE FROM outbox WHERE id IN (
                    SELECT id FROM outbox
                    WHERE published_at < now() - interval '1 day' LIMIT $1)",
                [DELETE_BATCH.into()],
            ),
            sql(
                "DELETE FROM idempotency WHERE (owner, key) IN (
                    SELECT owner, key FROM idempotency WHERE expires_at < now() LIMIT $1)",
                [DELETE_BATCH.into()],
            ),
        ] {
            gone += self.database.execute_raw(statement).await?.rows_affected();
        }
        Ok(gone)
    }
}
