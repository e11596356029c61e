//! What the bus is to be told, in the order in which it became true.

use agentbox_contracts::environment::{EnvironmentEvent, Route};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_database::begin;
use agentbox_database::sql::{advisory_lock, statement as sql};
use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};

/// The advisory lock under which one environment's rows are published.
const LOCK_CLASS: i32 = 3;
/// Rows of one environment that one pass publishes at most.
const BATCH: i64 = 64;

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "body", rename_all = "lowercase")]
pub enum Item {
    Event(EnvironmentEvent),
    /// Somebody of that cluster's replicas shall look at the environment.
    Command {
        cluster: String,
        op: String,
    },
    /// The route to it, or that there is none any more.
    Route(Option<Route>),
}

impl Item {
    #[must_use]
    pub fn reconcile(cluster: &str) -> Self {
        Self::Command {
            cluster: cluster.to_owned(),
            op: "reconcile".to_owned(),
        }
    }
}

pub(super) fn to_json(items: &[Item]) -> Result<serde_json::Value, StoreError> {
    Ok(serde_json::to_value(items)?)
}

/// A stored [`Item`].
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxRow {
    pub id: i64,
    pub item: Item,
    pub traceparent: Option<String>,
}

#[derive(FromQueryResult)]
struct RawRow {
    id: i64,
    kind: String,
    body: serde_json::Value,
    traceparent: Option<String>,
}

/// One environment's unpublished rows. While it lives, no other process has them.
pub struct Unpublished {
    transaction: DatabaseTransaction,
    pub rows: Vec<OutboxRow>,
}

impl Unpublished {
    /// Marks the first `count` rows as published, and lets go of all.
    ///
    /// # Errors
    /// When the database fails: they will be published once more.
    pub async fn published(self, count: usize) -> Result<(), StoreError> {
        let ids: Vec<i64> = self.rows.iter().take(count).map(|row| row.id).collect();
        if !ids.is_empty() {
            let statement = sql(
                "UPDATE outbox SET published_at = now()
                 WHERE id IN (SELECT value::bigint FROM jsonb_array_elements_text($1) AS ids (value))",
                [serde_json::to_value(ids)?.into()],
            );
            self.transaction.execute_raw(statement).await?;
        }
        Ok(self.transaction.commit().await?)
    }
}

impl Store {
    /// Takes one environment's unpublished rows, in order. Waits while another process
    /// has them. No span of its own: rows of several traces wait there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unpublished(&self, id: &EnvironmentId) -> Result<Unpublished, StoreError> {
        let transaction = begin(&self.database).await?;
        advisory_lock(&transaction, LOCK_CLASS, id.as_str()).await?;
        let statement = sql(
            "SELECT id, kind, body, traceparent FROM outbox
             WHERE environment_id = $1 AND published_at IS NULL ORDER BY id LIMIT $2",
            [id.as_str().into(), BATCH.into()],
        );
        let mut rows = Vec::new();
        for row in transaction.query_all_raw(statement).await? {
            let row = RawRow::from_query_result(&row, "")?;
            let item = serde_json::json!({ "kind": row.kind, "body": row.body });
            rows.push(OutboxRow {
                id: row.id,
                item: serde_json::from_value(item)?,
                traceparent: row.traceparent,
            });
        }
        Ok(Unpublished { transaction, rows })
    }

    /// Environments whose rows nobody has published for a while.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn overdue_in_outbox(&self, limit: u32) -> Result<Vec<EnvironmentId>, StoreError> {
        let statement = sql(
            "SELECT DISTINCT environment_id FROM outbox
             WHERE published_at IS NULL AND created_at < now() - interval '400 milliseconds'
             LIMIT $1",
            [i64::from(limit).into()],
        );
        self.environment_ids(statement).await
    }
}
