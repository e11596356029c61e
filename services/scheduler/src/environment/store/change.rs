//! Changing an environment and telling of it, in one statement.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::environment::{EventKind, Status};
use agentbox_database::sql::{seconds, statement as sql};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::ConnectionTrait;

use super::outbox::{Item, to_json};
use super::{COLUMNS, Record, Store, StoreError, record};
use crate::environment::state::{Standing, event_of};
use crate::trace;

/// What becomes of the work on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Whoever holds it goes on.
    Hold,
    /// Somebody must look, at once by a command, after so long if that is lost.
    Wake(Duration),
    /// Nothing is left to do.
    Done,
}

/// A transition, ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub standing: Standing,
    pub generation: i64,
    /// `None`: as it was.
    pub endpoint: Option<String>,
    pub terminating_at: Option<DateTime<Utc>>,
    pub grace: Duration,
    pub box_removed: bool,
    pub drive: Drive,
}

impl Change {
    /// What the cluster did: the intent stays.
    #[must_use]
    pub fn observed(before: &Record, standing: Standing) -> Self {
        Self {
            standing,
            generation: before.environment.generation,
            endpoint: None,
            terminating_at: before.terminating_at,
            grace: before.grace,
            box_removed: before.box_removed,
            drive: Drive::Hold,
        }
    }

    /// What somebody wants: a new generation, and work to do.
    #[must_use]
    pub fn wanted(
        before: &Record,
        standing: Standing,
        grace: Duration,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            standing,
            generation: before.environment.generation + 1,
            endpoint: None,
            terminating_at: before.terminating_at.or(Some(now)),
            grace,
            box_removed: before.box_removed,
            drive: Drive::Wake(Duration::from_secs(2)),
        }
    }
}

/// What is told of a transition, in order.
fn told(before: &Record, change: &Change, now: DateTime<Utc>) -> Vec<Item> {
    let environment = &before.environment;
    let standing = &change.standing;
    let moved = standing.status != environment.status;
    let mut items = Vec::with_capacity(3);
    if matches!(change.drive, Drive::Wake(_)) {
        items.push(Item::reconcile(&environment.cluster));
    }
    if moved {
        match standing.status {
            Status::Running => items.push(Item::Route(Some(before.route(standing)))),
            // A pending one never had a route.
            Status::Terminating if standing.address.is_some() => {
                items.push(Item::Route(Some(before.route(standing))));
            }
            Status::Terminated | Status::Failed => items.push(Item::Route(None)),
            Status::Pending | Status::Terminating => {}
        }
        items.push(Item::Event(before.event(
            event_of(standing.status),
            standing,
            now,
        )));
    }
    items
}

/// A user's PATCH, validated; an absent field stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    pub name: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub timeout_s: Option<u64>,
}

impl Store {
    /// Writes a transition of `before`, its outbox rows with it.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when the row is no longer as `before` has it.
    #[tracing::instrument(name = "postgres change", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE"))]
    pub async fn change(
        &self,
        before: &Record,
        change: &Change,
        now: DateTime<Utc>,
    ) -> Result<Record, StoreError> {
        let environment = &before.environment;
        let standing = &change.standing;
        let (wake, within) = match change.drive {
            Drive::Wake(within) => (true, within),
            Drive::Hold | Drive::Done => (false, Duration::ZERO),
        };
        let statement = sql(
            format!(
                "WITH changed AS (
                    UPDATE environments SET
                        status = $4, status_reason = $5, status_message = $6, exit_code = $7,
                        started_at = $8, ended_at = $9, address = $10,
                        endpoint = coalesce($11, endpoint), generation = $12,
                        observed_generation = $2, terminating_at = $13, grace_ms = $14,
                        box_removed = $15
                    WHERE id = $1 AND generation = $2 AND status = $3
                    RETURNING {COLUMNS}
                ), told AS (
                    INSERT INTO outbox (environment_id, kind, body, traceparent)
                    SELECT changed.id, item ->> 'kind', item -> 'body', $17
                    FROM changed, jsonb_array_elements($16) WITH ORDINALITY AS items (item, n)
                    ORDER BY n
                ), woken AS (
                    UPDATE drives SET due_at = now() + make_interval(secs => $19),
                        again = holder IS NOT NULL
                    FROM changed WHERE environment_id = changed.id AND $18
                ), finished AS (
                    DELETE FROM drives USING changed
                    WHERE environment_id = changed.id AND $20
                )
                SELECT * FROM changed"
            ),
            [
                environment.id.as_str().into(),
                environment.generation.into(),
                environment.status.as_str().into(),
                standing.status.as_str().into(),
                standing
                    .reason
                    .map(|reason| reason.as_str().to_owned())
                    .into(),
                standing.message.clone().into(),
                standing.exit_code.into(),
                standing.started_at.into(),
                standing.ended_at.into(),
                standing.address.map(|address| address.to_string()).into(),
                change.endpoint.clone().into(),
                change.generation.into(),
                change.terminating_at.into(),
                i64::try_from(change.grace.as_millis())
                    .unwrap_or(i64::MAX)
                    .into(),
                change.box_removed.into(),
                to_json(&told(before, change, now))?.into(),
                trace::current().into(),
                wake.into(),
                seconds(within),
                (change.drive == Drive::Done).into(),
            ],
        );
        let changed = self.database.query_one_raw(statement).await?;
        changed.map(record).transpose()?.ok_or(StoreError::Fenced)
    }

    /// Writes a PATCH of `before`.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] as in [`Self::change`].
    #[tracing::instrument(name = "postgres patch", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE"))]
    pub async fn patch(
        &self,
        before: &Record,
        patch: &Patch,
        now: DateTime<Utc>,
    ) -> Result<Record, StoreError> {
        let environment = &before.environment;
        let name = patch.name.as_ref().unwrap_or(&environment.request.name);
        let labels = patch.labels.as_ref().unwrap_or(&environment.request.labels);
        let timeout_s = patch.timeout_s.unwrap_or(environment.request.timeout_s);
        let timeout_s = i64::try_from(timeout_s).unwrap_or(i64::MAX);
        let expires_at = environment
            .created_at
            .checked_add_signed(TimeDelta::try_seconds(timeout_s).unwrap_or(TimeDelta::MAX))
            .unwrap_or(DateTime::<Utc>::MAX_UTC);
        let event = Item::Event(before.event(EventKind::Updated, &before.standing(), now));
        let statement = sql(
            format!(
                "WITH changed AS (
                    UPDATE environments SET name = $4, labels = $5, timeout_s = $6,
                        expires_at = $7, generation = generation + 1
                    WHERE id = $1 AND generation = $2 AND status = $3
                    RETURNING {COLUMNS}
                ), told AS (
                    INSERT INTO outbox (environment_id, kind, body, traceparent)
                    SELECT changed.id, item ->> 'kind', item -> 'body', $9
                    FROM changed, jsonb_array_elements($8) AS items (item)
                )
                SELECT * FROM changed"
            ),
            [
                environment.id.as_str().into(),
                environment.generation.into(),
                environment.status.as_str().into(),
                name.clone().into(),
                serde_json::to_value(labels)?.into(),
                timeout_s.into(),
                expires_at.into(),
                to_json(&[event])?.into(),
                trace::current().into(),
            ],
        );
        let changed = self.database.query_one_raw(statement).await?;
        changed.map(record).transpose()?.ok_or(StoreError::Fenced)
    }

    /// Says why a pending environment is not running yet.
    ///
    /// # Errors
    /// When the database fails. That it changed meanwhile is none: then it is outdated.
    #[tracing::instrument(name = "postgres note", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE"))]
    pub async fn note(&self, before: &Record, message: &str) -> Result<(), StoreError> {
        if before.environment.status_message.as_deref() == Some(message) {
            return Ok(());
        }
        let statement = sql(
            "UPDATE environments SET status_message = $3
             WHERE id = $1 AND generation = $2 AND status = 'pending'",
            [
                before.environment.id.as_str().into(),
                before.environment.generation.into(),
                message.into(),
            ],
        );
        self.database.execute_raw(statement).await?;
        Ok(())
    }

    /// The box of an ended environment is gone: nothing is left to do.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] as in [`Self::change`].
    #[tracing::instrument(name = "postgres removed", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE"))]
    pub async fn removed(&self, before: &Record) -> Result<Record, StoreError> {
        let statement = sql(
            format!(
                "WITH changed AS (
                    UPDATE environments SET box_removed = true
                    WHERE id = $1 AND generation = $2 AND status = $3
                    RETURNING {COLUMNS}
                ), finished AS (
                    DELETE FROM drives USING changed WHERE environment_id = changed.id
                )
                SELECT * FROM changed"
            ),
            [
                before.environment.id.as_str().into(),
                before.environment.generation.into(),
                before.environment.status.as_str().into(),
            ],
        );
        let changed = self.database.query_one_raw(statement).await?;
        changed.map(record).transpose()?.ok_or(StoreError::Fenced)
    }
}
