//! The queries of table `deliveries`.

use std::collections::HashSet;
use std::time::Duration;

use agentbox_contracts::environment::{EnvironmentEvent, EventKind};
use agentbox_contracts::ids::{DeliveryId, EnvironmentId, UserId, WebhookId};
use agentbox_contracts::webhook::{Delivery, DeliveryState};
use agentbox_database::sql::{bigint, seconds, statement, unsigned};
use agentbox_database::{Text, span};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DbErr, QueryResult, Value};
use tracing::Instrument as _;

use super::{Store, StoreError};
use crate::delivery::body;

/// The most rows that one statement of the sweep deletes.
pub const PURGED_AT_ONCE: u64 = 1_000;

/// The webhooks of an event's owner that receive it, and how many deliveries of each wait. A webhook
/// receives the events from its creation on.
const RECEIVERS: &str = "
    SELECT id, (SELECT count(*) FROM deliveries d
                WHERE d.webhook = webhooks.id AND d.state = 'pending') AS pending
    FROM webhooks
    WHERE owner = $1 AND created_at <= $2
      AND (kinds = '' OR $3 = ANY (string_to_array(kinds, ',')))";

/// A second delivery of the same event is not stored, nor one of a webhook that was deleted meanwhile.
const INSERT: &str = "
    INSERT INTO deliveries
        (id, webhook, message, event, environment, kind, body, state, ended_at, error)
    SELECT $1, w.id, $3, $4, $5, $6, $7, $8::text,
           CASE WHEN $8::text = 'dead' THEN now() END, $9
    FROM webhooks w WHERE w.id = $2
    FOR KEY SHARE OF w
    ON CONFLICT ON CONSTRAINT deliveries_once DO NOTHING";

/// Claims due deliveries: at most `$2` of one webhook and `$4` in all, and none of the webhooks in the
/// list `$3`.
const CLAIM: &str = "
    WITH due AS MATERIALIZED (
        SELECT one.id FROM webhooks w CROSS JOIN LATERAL (
            SELECT id, next_attempt_at FROM deliveries
            WHERE webhook = w.id AND state = 'pending' AND next_attempt_at <= now()
            ORDER BY next_attempt_at, event
            LIMIT $2
            FOR UPDATE SKIP LOCKED
        ) one
        WHERE w.id <> ALL (string_to_array($3, ','))
        ORDER BY one.next_attempt_at
        LIMIT $4
    )
    UPDATE deliveries d
    SET attempts = d.attempts + 1, next_attempt_at = now() + make_interval(secs => $1)
    FROM due, webhooks w
    WHERE d.id = due.id AND w.id = d.webhook
    RETURNING d.id, d.webhook, d.event, d.attempts, d.body, w.url, w.sealed_key";

/// Writes the result of an attempt, if no other one has begun and the user has not repeated it.
const FINISH: &str = "
    UPDATE deliveries
    SET state = $3, response_status = $4,
        next_attempt_at = now() + make_interval(secs => $6),
        ended_at = CASE WHEN $3 = 'pending' THEN NULL ELSE now() END,
        error = $5
    WHERE id = $1 AND attempts = $2 AND state = 'pending'";

const COLUMNS: &str = "id, event, environment, kind, state, attempts, created_at, next_attempt_at, \
                       ended_at, response_status, error";

/// How many deliveries of an event were stored, by their state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inserted {
    pub pending: u64,
    pub dead: u64,
}

/// A delivery that this replica attempts.
#[derive(Debug)]
pub struct Claimed {
    pub id: DeliveryId,
    pub webhook: WebhookId,
    pub event: u64,
    /// This attempt's number, from 1.
    pub attempts: u32,
    pub body: String,
    pub url: String,
    pub sealed_key: Vec<u8>,
}

/// The result of one attempt.
#[derive(Debug)]
pub enum Outcome {
    Delivered {
        status: u16,
    },
    Retried {
        status: Option<u16>,
        error: String,
        wait: Duration,
    },
    Dead {
        status: Option<u16>,
        error: String,
    },
}

fn small(row: &QueryResult, column: &str) -> Result<u32, DbErr> {
    Ok(u32::try_from(row.try_get::<i32>("", column)?).unwrap_or(0))
}

fn read_delivery(row: &QueryResult) -> Result<Delivery, DbErr> {
    let state = row.try_get::<Text<DeliveryState>>("", "state")?.0;
    let next: DateTime<Utc> = row.try_get("", "next_attempt_at")?;
    let status: Option<i32> = row.try_get("", "response_status")?;
    Ok(Delivery {
        id: row.try_get::<Text<DeliveryId>>("", "id")?.0,
        event: unsigned(row, "event")?,
        environment: row.try_get::<Text<EnvironmentId>>("", "environment")?.0,
        kind: row.try_get::<Text<EventKind>>("", "kind")?.0,
        state,
        attempts: small(row, "attempts")?,
        created_at: row.try_get("", "created_at")?,
        next_attempt_at: (state == DeliveryState::Pending).then_some(next),
        ended_at: row.try_get("", "ended_at")?,
        response_status: status.and_then(|status| u16::try_from(status).ok()),
        error: row.try_get("", "error")?,
    })
}

fn read_claimed(row: &QueryResult) -> Result<Claimed, DbErr> {
    Ok(Claimed {
        id: row.try_get::<Text<DeliveryId>>("", "id")?.0,
        webhook: row.try_get::<Text<WebhookId>>("", "webhook")?.0,
        event: unsigned(row, "event")?,
        attempts: small(row, "attempts")?,
        body: row.try_get("", "body")?,
        url: row.try_get("", "url")?,
        sealed_key: row.try_get("", "sealed_key")?,
    })
}

impl Store {
    /// Stores a delivery of the event for each webhook that receives it. Beyond `max_pending` waiting
    /// deliveries of a webhook, a delivery is dead at once.
    ///
    /// # Errors
    /// When the database fails. Some deliveries may be stored then; a repetition stores the rest.
    pub async fn insert_deliveries(
        &self,
        message: &str,
        sequence: u64,
        event: &EnvironmentEvent,
        max_pending: u32,
    ) -> Result<Inserted, StoreError> {
        let receivers = statement(
            RECEIVERS,
            [
                event.owner.as_str().into(),
                event.at.into(),
                event.kind.as_str().into(),
            ],
        );
        let rows = self.database.query_all_raw(receivers);
        let rows = rows.instrument(span!(SELECT webhooks)).await?;
        let mut inserted = Inserted::default();
        if rows.is_empty() {
            return Ok(inserted);
        }
        let body = body::encode(sequence, event)?;
        for row in rows {
            let webhook = row.try_get::<Text<WebhookId>>("", "id")?.0;
            let is_full = unsigned(&row, "pending")? >= u64::from(max_pending);
            let (state, error) = match is_full {
                true => (
                    DeliveryState::Dead,
                    Some(format!("{max_pending} deliveries wait, the most that may")),
                ),
                false => (DeliveryState::Pending, None),
            };
            let values: [Value; 9] = [
                DeliveryId::random().as_str().into(),
                webhook.as_str().into(),
                message.into(),
                bigint(sequence),
                event.environment_id.as_str().into(),
                event.kind.as_str().into(),
                body.clone().into(),
                state.as_str().into(),
                error.into(),
            ];
            let insert = self.database.execute_raw(statement(INSERT, values));
            let stored = insert.instrument(span!(INSERT deliveries)).await?;
            match state {
                DeliveryState::Dead => inserted.dead += stored.rows_affected(),
                _ => inserted.pending += stored.rows_affected(),
            }
        }
        Ok(inserted)
    }

    /// Claims due deliveries for `lease`: at most `each` of one webhook and `max` in all, and none of the
    /// webhooks in `busy`. Those of one webhook are in the order of their events.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim(
        &self,
        busy: &HashSet<WebhookId>,
        max: usize,
        each: u32,
        lease: Duration,
    ) -> Result<Vec<Claimed>, StoreError> {
        let busy: Vec<&str> = busy.iter().map(WebhookId::as_str).collect();
        let claim = statement(
            CLAIM,
            [
                seconds(lease),
                bigint(each.into()),
                busy.join(",").into(),
                bigint(u64::try_from(max).unwrap_or(u64::MAX)),
            ],
        );
        let rows = self.database.query_all_raw(claim);
        let rows = rows.instrument(span!(UPDATE deliveries)).await?;
        let claimed: Result<Vec<Claimed>, DbErr> = rows.iter().map(read_claimed).collect();
        let mut claimed = claimed?;
        claimed.sort_by_key(|delivery| delivery.event);
        Ok(claimed)
    }

    /// Writes the result of the attempt `attempts`. False: it no longer counts.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish(
        &self,
        id: &DeliveryId,
        attempts: u32,
        outcome: &Outcome,
    ) -> Result<bool, StoreError> {
        let (state, status, error, wait) = match outcome {
            Outcome::Delivered { status } => (
                DeliveryState::Delivered,
                Some(*status),
                None,
                Duration::ZERO,
            ),
            Outcome::Retried {
                status,
                error,
                wait,
            } => (DeliveryState::Pending, *status, Some(error.clone()), *wait),
            Outcome::Dead { status, error } => (
                DeliveryState::Dead,
                *status,
                Some(error.clone()),
                Duration::ZERO,
            ),
        };
        let values: [Value; 6] = [
            id.as_str().into(),
            i32::try_from(attempts).unwrap_or(i32::MAX).into(),
            state.as_str().into(),
            status.map(i32::from).into(),
            error.into(),
            seconds(wait),
        ];
        let finish = self.database.execute_raw(statement(FINISH, values));
        let finished = finish.instrument(span!(UPDATE deliveries)).await?;
        Ok(finished.rows_affected() > 0)
    }

    /// One page of the deliveries of an owner's webhook, newest first, and the total of all pages.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_deliveries(
        &self,
        webhook: &WebhookId,
        state: Option<DeliveryState>,
        limit: u32,
        offset: u64,
    ) -> Result<(Vec<Delivery>, u64), StoreError> {
        let state = state.map_or("", DeliveryState::as_str);
        let page = statement(
            format!(
                "SELECT {COLUMNS} FROM deliveries WHERE webhook = $1 AND ($2 = '' OR state = $2)
                 ORDER BY created_at DESC, id DESC LIMIT $3 OFFSET $4"
            ),
            [
                webhook.as_str().into(),
                state.into(),
                bigint(limit.into()),
                bigint(offset),
            ],
        );
        let count = statement(
            "SELECT count(*) AS total FROM deliveries WHERE webhook = $1 AND ($2 = '' OR state = $2)",
            [webhook.as_str().into(), state.into()],
        );
        let read = self.page_and_total(page, count);
        let (rows, total) = read.instrument(span!(SELECT deliveries)).await?;
        let deliveries: Result<Vec<Delivery>, DbErr> = rows.iter().map(read_delivery).collect();
        Ok((deliveries?, total))
    }

    /// Makes a delivery of an owner's webhook due again, from its first attempt on. `None`: there is
    /// none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn redeliver(
        &self,
        owner: &UserId,
        webhook: &WebhookId,
        id: &DeliveryId,
    ) -> Result<Option<Delivery>, StoreError> {
        let update = statement(
            format!(
                "UPDATE deliveries
                 SET state = 'pending', attempts = 0, next_attempt_at = now(), ended_at = NULL
                 WHERE id = $1 AND webhook = $2
                   AND EXISTS (SELECT FROM webhooks w WHERE w.id = $2 AND w.owner = $3)
                 RETURNING {COLUMNS}"
            ),
            [
                id.as_str().into(),
                webhook.as_str().into(),
                owner.as_str().into(),
            ],
        );
        let update = self.database.query_one_raw(update);
        let row = update.instrument(span!(UPDATE deliveries)).await?;
        Ok(row.as_ref().map(read_delivery).transpose()?)
    }

    /// Deletes deliveries that ended longer ago than `retention`, some of them. Returns how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn purge_deliveries(&self, retention: Duration) -> Result<u64, StoreError> {
        let delete = statement(
            "DELETE FROM deliveries WHERE id IN (
                SELECT id FROM deliveries WHERE ended_at < now() - make_interval(secs => $1)
                LIMIT $2
             )",
            [seconds(retention), bigint(PURGED_AT_ONCE)],
        );
        let delete = self.database.execute_raw(delete);
        let deleted = delete.instrument(span!(DELETE deliveries)).await?;
        Ok(deleted.rows_affected())
    }
}
