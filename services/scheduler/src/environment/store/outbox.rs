//! The outbox: messages for the bus, in the order of the changes that they report.
//!
//! A publisher claims one environment at a time: a row of `outbox_leases` with an expiry.
//! Nothing else is held while the bus answers: no transaction, lock or connection.
//!
//! * I1. One publisher at a time holds the claim of an environment. A killed publisher's
//!   claim expires after [`LEASE`].
//! * I2. A claim that is refused sets `requeue`, and the holder then reads the rows once more.
//!   So a row that is committed while others are published does not wait for the sweep.
//! * I3. The holder reads the rows after its claim, in a statement of its own. It therefore sees
//!   the rows that earlier holders marked as published.

use std::time::Duration;

use agentbox_contracts::audit::AuditEntry;
use agentbox_contracts::environment::{EnvironmentEvent, Route};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_database::sql::{seconds, statement};
use sea_orm::{ConnectionTrait, FromQueryResult};
use serde::{Deserialize, Serialize};

use super::{Params, Store, StoreError};
use crate::trace;

/// How long a claim lasts without being renewed.
pub const LEASE: Duration = Duration::from_secs(5);
/// Rows of one environment that are read at a time.
const BATCH: i64 = 64;

/// One message for the bus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "body", rename_all = "lowercase")]
pub enum OutboxMessage {
    Event(EnvironmentEvent),
    /// Makes a replica that serves this cluster reconcile the environment.
    Command {
        cluster: String,
        op: String,
    },
    /// The route to the environment; `None` removes it.
    Route(Option<Route>),
    /// The API request that changed the environment, for the audit trail.
    Audit(AuditEntry),
}

impl OutboxMessage {
    #[must_use]
    pub fn reconcile(cluster: &str) -> Self {
        Self::Command {
            cluster: cluster.to_owned(),
            op: "reconcile".to_owned(),
        }
    }
}

/// The INSERT of `messages` for the environment in the CTE `changed`.
pub(super) fn insert_outbox_rows(
    changed: &str,
    messages: &[OutboxMessage],
    params: &mut Params,
) -> Result<String, StoreError> {
    let messages = params.push(serde_json::to_value(messages)?);
    let traceparent = params.push(trace::current());
    Ok(format!(
        "INSERT INTO outbox (environment_id, kind, body, traceparent)
         SELECT {changed}.id, message ->> 'kind', message -> 'body', {traceparent}
         FROM {changed},
            jsonb_array_elements({messages}) WITH ORDINALITY AS messages (message, position)
         ORDER BY position"
    ))
}

/// A stored [`OutboxMessage`].
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxRow {
    pub id: i64,
    pub message: OutboxMessage,
    pub traceparent: Option<String>,
}

#[derive(FromQueryResult)]
struct RawRow {
    id: i64,
    kind: String,
    body: serde_json::Value,
    traceparent: Option<String>,
}

/// The unpublished rows of one environment, in order; the oldest of them if there are many.
#[derive(Debug)]
pub struct OutboxBatch {
    pub rows: Vec<OutboxRow>,
}

impl OutboxBatch {
    /// Whether there may be more rows than these.
    #[must_use]
    pub fn is_full(&self) -> bool {
        i64::try_from(self.rows.len()).is_ok_and(|rows| rows >= BATCH)
    }
}

/// Whether a publisher keeps its claim after it has published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimAction {
    Release,
    Renew,
    /// Another publisher was refused it: there may be new rows.
    RenewIfRequeued,
}

impl ClaimAction {
    /// `None`: the column `requeue` of the lease decides.
    const fn is_renewed(self) -> Option<bool> {
        match self {
            Self::Release => Some(false),
            Self::Renew => Some(true),
            Self::RenewIfRequeued => None,
        }
    }
}

impl Store {
    /// Claims the outbox rows of an environment for `holder`, which is unique to this claim.
    /// False: another publisher has them, and reads them once more for new ones.
    ///
    /// No span of its own: rows of several traces may be claimed at once.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim_outbox(&self, id: &EnvironmentId, holder: &str) -> Result<bool, StoreError> {
        let claim = statement(
            "INSERT INTO outbox_leases AS lease (environment_id, holder, expires_at)
             VALUES ($1, $2, now() + make_interval(secs => $3))
             ON CONFLICT (environment_id) DO UPDATE SET
                holder = CASE WHEN lease.holder IS NULL OR lease.expires_at <= now()
                    THEN excluded.holder ELSE lease.holder END,
                expires_at = CASE WHEN lease.holder IS NULL OR lease.expires_at <= now()
                    THEN excluded.expires_at ELSE lease.expires_at END,
                requeue = lease.holder IS NOT NULL AND lease.expires_at > now()
             RETURNING holder = $2 AS claimed",
            [id.as_str().into(), holder.into(), seconds(LEASE)],
        );
        let row = self.database.query_one_raw(claim).await?;
        Ok(row
            .map(|row| row.try_get("", "claimed"))
            .transpose()?
            .unwrap_or(false))
    }

    /// The unpublished rows of an environment, in order. For the holder of its claim.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unpublished(&self, id: &EnvironmentId) -> Result<OutboxBatch, StoreError> {
        let unpublished = statement(
            "SELECT id, kind, body, traceparent FROM outbox
             WHERE environment_id = $1 AND published_at IS NULL ORDER BY id LIMIT $2",
            [id.as_str().into(), BATCH.into()],
        );
        let mut rows = Vec::new();
        for row in self.database.query_all_raw(unpublished).await? {
            let row = RawRow::from_query_result(&row, "")?;
            let message = serde_json::json!({ "kind": row.kind, "body": row.body });
            rows.push(OutboxRow {
                id: row.id,
                message: serde_json::from_value(message)?,
                traceparent: row.traceparent,
            });
        }
        Ok(OutboxBatch { rows })
    }

    /// Marks `rows` as published, and ends or renews the claim of `holder`. True: it is still
    /// held.
    ///
    /// # Errors
    /// When the database fails: the rows will be published again, with the same message ids.
    pub async fn mark_published(
        &self,
        id: &EnvironmentId,
        holder: &str,
        rows: &[OutboxRow],
        claim: ClaimAction,
    ) -> Result<bool, StoreError> {
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        let mark = statement(
            "WITH published AS (
                UPDATE outbox SET published_at = now()
                WHERE id IN (SELECT value::bigint FROM jsonb_array_elements_text($3) AS ids (value))
             )
             UPDATE outbox_leases SET requeue = false,
                holder = CASE WHEN coalesce($4, requeue) THEN holder END,
                expires_at = CASE WHEN coalesce($4, requeue)
                    THEN now() + make_interval(secs => $5) ELSE now() END
             WHERE environment_id = $1 AND holder = $2
             RETURNING holder IS NOT NULL AS held",
            [
                id.as_str().into(),
                holder.into(),
                serde_json::to_value(ids)?.into(),
                claim.is_renewed().into(),
                seconds(LEASE),
            ],
        );
        let row = self.database.query_one_raw(mark).await?;
        Ok(row
            .map(|row| row.try_get("", "held"))
            .transpose()?
            .unwrap_or(false))
    }

    /// Environments with unclaimed rows that are older than their publisher needs to begin.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn overdue_environments(&self, limit: u32) -> Result<Vec<EnvironmentId>, StoreError> {
        let overdue = statement(
            "SELECT DISTINCT environment_id FROM outbox
             WHERE published_at IS NULL AND created_at < now() - interval '400 milliseconds'
                AND NOT EXISTS (SELECT FROM outbox_leases AS lease
                    WHERE lease.environment_id = outbox.environment_id
                        AND lease.expires_at > now())
             LIMIT $1",
            [i64::from(limit).into()],
        );
        self.environment_ids(overdue).await
    }
}
