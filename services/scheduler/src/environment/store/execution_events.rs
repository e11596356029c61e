//! The events about executions, and which executions are reported.
//!
//! * I1. The outbox rows of a report and its rows of `reported_executions` are written in one
//!   transaction, which has locked the row of the environment and then read what is reported: two
//!   reports of one environment write each event once.
//! * I2. An environment that has ended, or whose label does not ask for it, gets no row.

use agentbox_contracts::environment::{
    EXECUTION_EVENTS_LABEL, EXECUTION_EVENTS_ON, EnvironmentEvent, EventExecution,
};
use agentbox_contracts::ids::{EnvironmentId, ExecId};
use agentbox_database::sql::statement;
use agentbox_database::{begin, span};
use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, LockType};
use sea_orm::{ConnectionTrait, EntityTrait as _, QueryFilter as _, QuerySelect as _};
use serde_json::json;
use tracing::Instrument as _;

use super::outbox::{OutboxMessage, insert_outbox_rows};
use super::{Params, Record, RunningBox, Store, StoreError};
use crate::environment::entity::Entity;
use crate::environment::execution_events::report::{Known, Report, report};

/// The label asks for events about executions.
fn asks_for_events() -> String {
    format!("labels ->> '{EXECUTION_EVENTS_LABEL}' = '{EXECUTION_EVENTS_ON}'")
}

/// What is reported about the executions of an environment.
async fn known(on: &impl ConnectionTrait, id: &EnvironmentId) -> Result<Known, StoreError> {
    let select = statement(
        "SELECT execution_id, ended FROM reported_executions WHERE environment_id = $1",
        [id.as_str().into()],
    );
    let mut known = Known::new();
    for row in on.query_all_raw(select).await? {
        let execution: String = row.try_get("", "execution_id")?;
        // Only ids are written.
        if let Ok(execution) = execution.parse::<ExecId>() {
            known.insert(execution, row.try_get("", "ended")?);
        }
    }
    Ok(known)
}

/// Writes the outbox rows of a report, and what is reported now.
async fn write_report(
    on: &impl ConnectionTrait,
    record: &Record,
    report: Report,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let id = record.environment.id.as_str();
    let messages: Vec<OutboxMessage> = report
        .events
        .into_iter()
        .map(|(kind, execution)| {
            OutboxMessage::Event(EnvironmentEvent {
                execution: Some(execution),
                ..record.event(kind, &record.state(), now)
            })
        })
        .collect();
    let mut params = Params::default();
    let environment = params.push(id);
    let insert = insert_outbox_rows("changed", &messages, &mut params)?;
    let text = format!("WITH changed AS (SELECT {environment}::text AS id) {insert}");
    on.execute_raw(statement(text, params.0)).await?;

    let changed = report.changed.iter();
    let changed: Vec<_> = changed
        .map(|(execution, ended)| json!({ "id": execution, "ended": ended }))
        .collect();
    let note = statement(
        "INSERT INTO reported_executions (environment_id, execution_id, ended)
         SELECT $1, execution ->> 'id', (execution ->> 'ended')::boolean
         FROM jsonb_array_elements($2) AS executions (execution)
         ON CONFLICT (environment_id, execution_id) DO UPDATE SET ended = excluded.ended",
        [id.into(), serde_json::Value::Array(changed).into()],
    );
    on.execute_raw(note).await?;
    if !report.forgotten.is_empty() {
        let forget = statement(
            "DELETE FROM reported_executions
             WHERE environment_id = $1 AND execution_id IN (SELECT jsonb_array_elements_text($2))",
            [id.into(), serde_json::to_value(&report.forgotten)?.into()],
        );
        on.execute_raw(forget).await?;
    }
    Ok(())
}

impl Store {
    /// The running boxes whose executions have events. Skips rows that cannot be read.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn boxes_with_execution_events(&self) -> Result<Vec<RunningBox>, StoreError> {
        self.running_boxes_where(&asks_for_events()).await
    }

    /// Writes the events that follow from `listed`, the executions of an environment's box, newest first.
    /// Returns how many.
    ///
    /// # Errors
    /// When the database fails: nothing is written, and the next report has them.
    pub async fn report_executions(
        &self,
        id: &EnvironmentId,
        listed: &[EventExecution],
        now: DateTime<Utc>,
    ) -> Result<usize, StoreError> {
        // Usually there is nothing to write, and then no row is locked.
        let seen = known(&self.database, id);
        let seen = seen.instrument(span!(SELECT reported_executions)).await?;
        if report(&seen, listed).events.is_empty() {
            return Ok(0);
        }
        let span = span!(INSERT outbox);
        self.write_events(id, listed, now).instrument(span).await
    }

    async fn write_events(
        &self,
        id: &EnvironmentId,
        listed: &[EventExecution],
        now: DateTime<Utc>,
    ) -> Result<usize, StoreError> {
        let transaction = begin(&self.database).await?;
        let row = Entity::find_by_id(id.as_str())
            .filter(Expr::cust("status IN ('running', 'terminating')"))
            .filter(Expr::cust(asks_for_events()))
            .lock(LockType::NoKeyUpdate)
            .one(&transaction)
            .await?;
        let Some(record) = row.map(Record::try_from).transpose()? else {
            return Ok(0);
        };
        let report = report(&known(&transaction, id).await?, listed);
        let events = report.events.len();
        if events > 0 {
            write_report(&transaction, &record, report, now).await?;
            transaction.commit().await?;
        }
        Ok(events)
    }
}
