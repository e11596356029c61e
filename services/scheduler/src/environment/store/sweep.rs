//! Queries of the periodic tasks.

use std::time::Duration;

use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_database::sql::{seconds, statement};
use sea_orm::sea_query::{Expr, ExprTrait as _, SimpleExpr};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};

use super::{Record, Store, StoreError, UnreadableRows, environment_id, is_one_of, records};
use crate::environment::entity::{Column, Entity};
use crate::environment::record::CorruptRow;

/// Rows that one statement deletes at most, so that it holds its locks only briefly.
const DELETE_BATCH: i64 = 5_000;

/// An environment whose box may still exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveEnvironment {
    pub id: EnvironmentId,
    /// `None` when this version does not know the status, and for a warm box.
    pub status: Option<Status>,
}

/// Its end was not requested yet. The text is that of the partial indexes, so that Postgres uses
/// them.
fn is_pending_or_running() -> SimpleExpr {
    Expr::cust("status IN ('pending', 'running')")
}

impl Store {
    /// Pending and running environments past their timeout, at most `limit`. Skips rows that cannot be
    /// read, and reads on: they do not delay the others, however many they are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expired(&self, limit: u32) -> Result<Vec<Record>, StoreError> {
        let expired = Entity::find()
            .filter(is_pending_or_running())
            .filter(Expr::col(Column::ExpiresAt).lte(Expr::current_timestamp()))
            .order_by_asc(Column::ExpiresAt)
            .order_by_asc(Column::Id);
        let wanted = limit as usize;
        let mut unreadable = UnreadableRows::default();
        let mut records: Vec<Record> = Vec::new();
        let mut read: u64 = 0;
        loop {
            let page = expired.clone().offset(read).limit(u64::from(limit));
            let rows = page.all(&self.database).await?;
            let is_last = rows.len() < wanted;
            read += rows.len() as u64;
            let readable = rows.into_iter().map(Record::try_from);
            records.extend(readable.filter_map(|record| unreadable.skip(record)));
            if is_last || records.len() >= wanted {
                break;
            }
        }
        unreadable.report();
        records.truncate(wanted);
        Ok(records)
    }

    /// Pending and running environments of `owner`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn active_owned_by(
        &self,
        owner: &UserId,
        limit: u32,
    ) -> Result<Vec<Record>, StoreError> {
        let active = Entity::find()
            .filter(Column::Owner.eq(owner.as_str()))
            .filter(is_pending_or_running())
            .limit(u64::from(limit));
        records(active.all(&self.database).await?)
    }

    /// The environments of a cluster that have a box, or whose box may still exist, and the warm boxes.
    /// Includes those whose status cannot be read, because their box is no orphan.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn active_in_cluster(
        &self,
        cluster: &str,
    ) -> Result<Vec<ActiveEnvironment>, StoreError> {
        let active = statement(
            "SELECT id, status FROM reconcile_queue JOIN environments ON id = environment_id
             WHERE reconcile_queue.cluster = $1
             UNION ALL SELECT id, NULL AS status FROM warm_boxes WHERE cluster = $1",
            [cluster.into()],
        );
        let mut environments = Vec::new();
        let mut unreadable = UnreadableRows::default();
        for row in self.database.query_all_raw(active).await? {
            let (id, status): (String, Option<String>) =
                (row.try_get("", "id")?, row.try_get("", "status")?);
            let status = status.and_then(|status| {
                unreadable.skip(status.parse::<Status>().map_err(|_| CorruptRow {
                    id: id.clone(),
                    column: "status",
                    problem: format!("`{status}` is not a status"),
                }))
            });
            if let Some(id) = unreadable.skip(environment_id(&id)) {
                environments.push(ActiveEnvironment { id, status });
            }
        }
        unreadable.report();
        Ok(environments)
    }

    /// Those of `ids` that have ended and whose box was removed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn ended_without_box(
        &self,
        ids: &[EnvironmentId],
    ) -> Result<Vec<EnvironmentId>, StoreError> {
        let ended: Vec<String> = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(is_one_of(ids)?)
            .filter(Expr::cust(
                "status IN ('terminated', 'failed') AND box_removed",
            ))
            .into_tuple()
            .all(&self.database)
            .await?;
        let mut unreadable = UnreadableRows::default();
        let ids = ended
            .iter()
            .filter_map(|id| unreadable.skip(environment_id(id)))
            .collect();
        unreadable.report();
        Ok(ids)
    }

    /// Deletes rows past their retention: environments that ended longer than `retention`
    /// ago, published outbox rows, outbox claims, idempotency keys. Returns the number of
    /// deleted rows.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn purge(&self, retention: Duration) -> Result<u64, StoreError> {
        let mut rows = 0;
        for delete in [
            statement(
                "DELETE FROM environments WHERE id IN (
                    SELECT id FROM environments
                    WHERE ended_at < now() - make_interval(secs => $1) AND box_removed
                    LIMIT $2)",
                [seconds(retention), DELETE_BATCH.into()],
            ),
            statement(
                "DELETE FROM outbox WHERE id IN (
                    SELECT id FROM outbox
                    WHERE published_at < now() - interval '1 day' LIMIT $1)",
                [DELETE_BATCH.into()],
            ),
            // The outer condition is tested again, because a publisher may have claimed the row
            // meanwhile.
            statement(
                "DELETE FROM outbox_leases WHERE expires_at < now() - interval '1 hour'
                    AND environment_id IN (
                        SELECT environment_id FROM outbox_leases
                        WHERE expires_at < now() - interval '1 hour' LIMIT $1)",
                [DELETE_BATCH.into()],
            ),
            statement(
                "DELETE FROM idempotency WHERE (owner, key) IN (
                    SELECT owner, key FROM idempotency WHERE expires_at < now() LIMIT $1)",
                [DELETE_BATCH.into()],
            ),
        ] {
            rows += self.database.execute_raw(delete).await?.rows_affected();
        }
        Ok(rows)
    }
}
