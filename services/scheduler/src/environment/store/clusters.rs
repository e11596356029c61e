//! The clusters that an operator has cordoned or drains, and the environments in each cluster.
//!
//! * I1. A change and its audit entry are written in one statement.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::cluster::EnvironmentCounts;
use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_database::span;
use agentbox_database::sql::{seconds, statement, unsigned};
use chrono::{DateTime, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ConnectionTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};
use tracing::Instrument as _;

use super::messages::audit_message;
use super::outbox::insert_outbox_rows;
use super::{Params, Record, Store, StoreError, UnreadableRows};
use crate::cluster::scheduling::Scheduling;
use crate::environment::entity::{Column, Entity};

impl Store {
    /// The clusters that are not active.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn schedulings(&self) -> Result<BTreeMap<String, Scheduling>, StoreError> {
        let select = statement("SELECT cluster, drain_deadline FROM cluster_states", []);
        let mut schedulings = BTreeMap::new();
        for row in self.database.query_all_raw(select).await? {
            let deadline: Option<DateTime<Utc>> = row.try_get("", "drain_deadline")?;
            let scheduling = deadline.map_or(Scheduling::Cordoned, |deadline| {
                Scheduling::Draining { deadline }
            });
            schedulings.insert(row.try_get("", "cluster")?, scheduling);
        }
        Ok(schedulings)
    }

    /// Makes a cluster take no new environments. With `drain_within`, those that are left after this
    /// time are ended. Returns the id whose outbox rows are to be published.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cordon(
        &self,
        cluster: &str,
        drain_within: Option<Duration>,
    ) -> Result<EnvironmentId, StoreError> {
        let action = match drain_within {
            None => AuditAction::CordonCluster,
            Some(_) => AuditAction::DrainCluster,
        };
        let mut params = Params::default();
        let id = outbox_id();
        let (cluster_value, id_value) = (params.push(cluster), params.push(id.as_str()));
        let deadline = match drain_within {
            None => "NULL::timestamptz".to_owned(),
            Some(within) => format!(
                "now() + make_interval(secs => {})",
                params.push(seconds(within))
            ),
        };
        let messages: Vec<_> = audit_message(action, cluster).into_iter().collect();
        let outbox_rows = insert_outbox_rows("changed", &messages, &mut params)?;
        let text = format!(
            "WITH changed AS (
                INSERT INTO cluster_states (cluster, drain_deadline)
                VALUES ({cluster_value}, {deadline})
                ON CONFLICT (cluster) DO UPDATE SET
                    drain_deadline = excluded.drain_deadline, changed_at = now()
                RETURNING {id_value}::text AS id
             ), outbox_rows AS ({outbox_rows})
             SELECT id FROM changed"
        );
        self.database
            .execute_raw(statement(text, params.0))
            .instrument(span!(INSERT cluster_states))
            .await?;
        Ok(id)
    }

    /// Makes a cluster take new environments. Returns the id whose outbox rows are to be published;
    /// `None` when it did already.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn uncordon(&self, cluster: &str) -> Result<Option<EnvironmentId>, StoreError> {
        let mut params = Params::default();
        let id = outbox_id();
        let (cluster_value, id_value) = (params.push(cluster), params.push(id.as_str()));
        let messages: Vec<_> = audit_message(AuditAction::UncordonCluster, cluster)
            .into_iter()
            .collect();
        let outbox_rows = insert_outbox_rows("deleted", &messages, &mut params)?;
        let text = format!(
            "WITH deleted AS (
                DELETE FROM cluster_states WHERE cluster = {cluster_value}
                RETURNING {id_value}::text AS id
             ), outbox_rows AS ({outbox_rows})
             SELECT id FROM deleted"
        );
        let row = self
            .database
            .query_one_raw(statement(text, params.0))
            .instrument(span!(DELETE cluster_states))
            .await?;
        Ok(row.map(|_| id))
    }

    /// The environments of each cluster that have not ended, by status.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn environments_by_cluster(
        &self,
    ) -> Result<BTreeMap<String, EnvironmentCounts>, StoreError> {
        let select = statement(
            "SELECT cluster, status, count(*) AS environments FROM environments
             WHERE status IN ('pending', 'running', 'terminating')
             GROUP BY cluster, status",
            [],
        );
        let rows = self
            .database
            .query_all_raw(select)
            .instrument(span!(SELECT environments))
            .await?;
        let mut clusters: BTreeMap<String, EnvironmentCounts> = BTreeMap::new();
        for row in rows {
            let counts = clusters.entry(row.try_get("", "cluster")?).or_default();
            let environments = unsigned(&row, "environments")?;
            let status: String = row.try_get("", "status")?;
            match status.parse::<Status>() {
                Ok(Status::Pending) => counts.pending = environments,
                Ok(Status::Running) => counts.running = environments,
                Ok(Status::Terminating) => counts.terminating = environments,
                Ok(Status::Terminated | Status::Failed) | Err(_) => {}
            }
        }
        Ok(clusters)
    }

    /// Pending and running environments in clusters whose drain is past its deadline, at most `limit`.
    /// Skips rows that cannot be read.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn left_after_drain(&self, limit: u32) -> Result<Vec<Record>, StoreError> {
        let left = Entity::find()
            .filter(Expr::cust("status IN ('pending', 'running')"))
            .filter(Expr::cust(
                "cluster IN (SELECT cluster_states.cluster FROM cluster_states
                    WHERE drain_deadline <= now())",
            ))
            .order_by_asc(Column::Id)
            .limit(u64::from(limit));
        let mut unreadable = UnreadableRows::default();
        let rows = left.all(&self.database).await?;
        let records = rows
            .into_iter()
            .filter_map(|row| unreadable.skip(Record::try_from(row)))
            .collect();
        unreadable.report();
        Ok(records)
    }
}

/// An id for the outbox rows of one change of a cluster. It names no environment: the entries of
/// the audit trail need no order among each other.
fn outbox_id() -> EnvironmentId {
    EnvironmentId::random()
}
