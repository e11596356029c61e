//! The last activity of environments, and those that were idle for their idle timeout.
//!
//! * I1. Reports of activity change neither the generation nor an index of the row, so that they
//!   fence no other write.

use std::time::Duration;

use agentbox_contracts::environment::MAX_TIMEOUT_S;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_database::span;
use agentbox_database::sql::{seconds, statement};
use sea_orm::sea_query::Expr;
use sea_orm::{ConnectionTrait as _, EntityTrait as _, QueryFilter as _};
use tracing::Instrument as _;

use super::{Record, Store, StoreError};
use crate::environment::entity::Entity;

/// The environment was idle for its idle timeout, as far as it was reported. The 20 seconds are two
/// intervals of reports: one may have been lost.
const IS_IDLE: &str = "status = 'running' AND idle_timeout_s IS NOT NULL
    AND greatest(started_at, last_active_at)
        + make_interval(secs => (idle_timeout_s + 20)::double precision) <= now()";

impl Store {
    /// Records that `ids` are in use now. Ids of environments that do not run are ignored.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_activity(&self, ids: &[EnvironmentId]) -> Result<(), StoreError> {
        // Locked in the order of the ids: two reports of the same environments do not wait for each
        // other in a circle. Several replicas report the same environment, and one report is enough.
        let record = statement(
            "UPDATE environments SET last_active_at = now() FROM (
                SELECT id FROM environments
                WHERE id IN (SELECT jsonb_array_elements_text($1)) AND status = 'running'
                    AND (last_active_at IS NULL OR last_active_at < now() - interval '5 seconds')
                ORDER BY id FOR NO KEY UPDATE
             ) AS used
             WHERE environments.id = used.id",
            [serde_json::to_value(ids)?.into()],
        );
        self.database
            .execute_raw(record)
            .instrument(span!(UPDATE environments))
            .await?;
        Ok(())
    }

    /// Records that the last activity of an environment was `idle` ago, unless a later one is known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_idle(&self, id: &EnvironmentId, idle: Duration) -> Result<(), StoreError> {
        // A box reports it, and Postgres has no time before its first.
        let idle = idle.min(Duration::from_secs(MAX_TIMEOUT_S));
        let record = statement(
            "UPDATE environments SET last_active_at = now() - make_interval(secs => $2)
             WHERE id = $1 AND status = 'running'
                AND greatest(started_at, last_active_at) < now() - make_interval(secs => $2)",
            [id.as_str().into(), seconds(idle)],
        );
        self.database
            .execute_raw(record)
            .instrument(span!(UPDATE environments))
            .await?;
        Ok(())
    }

    /// Environments that were idle for their idle timeout, at most `limit`. In no order, so that those
    /// whose box does not answer do not delay the others.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn idle(&self, limit: u32) -> Result<Vec<EnvironmentId>, StoreError> {
        let idle = statement(
            format!(
                "SELECT id AS environment_id FROM environments
                 WHERE {IS_IDLE} ORDER BY random() LIMIT $1"
            ),
            [i64::from(limit).into()],
        );
        self.environment_ids(idle).await
    }

    /// The environment, if it was idle for its idle timeout.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_idle(&self, id: &EnvironmentId) -> Result<Option<Record>, StoreError> {
        let row = Entity::find_by_id(id.as_str())
            .filter(Expr::cust(IS_IDLE))
            .one(&self.database)
            .instrument(span!(SELECT environments))
            .await?;
        Ok(row.map(Record::try_from).transpose()?)
    }
}
