//! One row of `environments`, read.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::environment::{
    Environment, EnvironmentEvent, EventKind, Route, Status, StatusReason,
};
use chrono::{DateTime, Utc};
use sea_orm::FromQueryResult;

use crate::environment::plan::Intent;
use crate::environment::state::Standing;

/// An environment, and what the scheduler alone knows of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub environment: Environment,
    /// The generation that the last transition was made for.
    pub observed_generation: i64,
    pub start_deadline: DateTime<Utc>,
    pub admitted: bool,
    pub terminating_at: Option<DateTime<Utc>>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    pub box_removed: bool,
}

/// What a row holds that we never wrote.
#[derive(Debug, thiserror::Error)]
#[error("environment `{id}`: column {column} cannot be read: {problem}")]
pub struct CorruptRow {
    pub id: String,
    pub column: &'static str,
    pub problem: String,
}

/// The columns of [`Row`], in SQL.
pub(super) const COLUMNS: &str = "id, owner, owner_username, cluster, name, labels, timeout_s, \
     request, status, status_reason, status_message, exit_code, created_at, started_at, \
     ended_at, expires_at, endpoint, namespace, address, generation, observed_generation, \
     start_deadline, admitted, terminating_at, grace_ms, box_removed";

/// As the database has it.
#[derive(FromQueryResult)]
pub(super) struct Row {
    id: String,
    owner: String,
    owner_username: String,
    cluster: String,
    name: String,
    labels: serde_json::Value,
    timeout_s: i64,
    request: serde_json::Value,
    status: String,
    status_reason: Option<String>,
    status_message: Option<String>,
    exit_code: Option<i32>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
    expires_at: DateTime<Utc>,
    endpoint: String,
    namespace: String,
    address: Option<String>,
    generation: i64,
    observed_generation: i64,
    start_deadline: DateTime<Utc>,
    admitted: bool,
    terminating_at: Option<DateTime<Utc>>,
    grace_ms: i64,
    box_removed: bool,
}

fn status_of(text: &str) -> Option<Status> {
    text.parse().ok()
}

fn reason_of(text: &str) -> Option<StatusReason> {
    text.parse().ok()
}

impl TryFrom<Row> for Record {
    type Error = CorruptRow;

    fn try_from(row: Row) -> Result<Self, CorruptRow> {
        let id = row.id.clone();
        let corrupt = |column: &'static str, problem: String| CorruptRow {
            id: id.clone(),
            column,
            problem,
        };
        let mut request: agentbox_contracts::environment::EnvironmentRequest =
            serde_json::from_value(row.request).map_err(|e| corrupt("request", e.to_string()))?;
        request.name = row.name;
        request.labels =
            serde_json::from_value(row.labels).map_err(|e| corrupt("labels", e.to_string()))?;
        request.timeout_s = row.timeout_s.try_into().unwrap_or(0);
        let status = status_of(&row.status)
            .ok_or_else(|| corrupt("status", format!("`{}` is no status", row.status)))?;
        let status_reason = row
            .status_reason
            .map(|text| {
                reason_of(&text)
                    .ok_or_else(|| corrupt("status_reason", format!("`{text}` is no reason")))
            })
            .transpose()?;
        let address = row
            .address
            .map(|text| {
                text.parse::<SocketAddr>()
                    .map_err(|e| corrupt("address", e.to_string()))
            })
            .transpose()?;
        Ok(Self {
            environment: Environment {
                id: row.id.parse().map_err(|e| corrupt("id", format!("{e}")))?,
                owner: row
                    .owner
                    .parse()
                    .map_err(|e| corrupt("owner", format!("{e}")))?,
                owner_username: row.owner_username,
                cluster: row.cluster,
                request,
                status,
                status_reason,
                status_message: row.status_message,
                created_at: row.created_at,
                started_at: row.started_at,
                ended_at: row.ended_at,
                expires_at: row.expires_at,
                exit_code: row.exit_code,
                endpoint: row.endpoint,
                namespace: row.namespace,
                address,
                generation: row.generation,
            },
            observed_generation: row.observed_generation,
            start_deadline: row.start_deadline,
            admitted: row.admitted,
            terminating_at: row.terminating_at,
            grace: Duration::from_millis(row.grace_ms.try_into().unwrap_or(0)),
            box_removed: row.box_removed,
        })
    }
}

impl Record {
    #[must_use]
    pub fn standing(&self) -> Standing {
        let environment = &self.environment;
        Standing {
            status: environment.status,
            reason: environment.status_reason,
            message: environment.status_message.clone(),
            exit_code: environment.exit_code,
            started_at: environment.started_at,
            ended_at: environment.ended_at,
            address: environment.address,
        }
    }

    #[must_use]
    pub fn intent(&self) -> Intent {
        Intent {
            status: self.environment.status,
            created_at: self.environment.created_at,
            start_deadline: self.start_deadline,
            admitted: self.admitted,
            terminating_at: self.terminating_at,
            grace: self.grace,
            box_removed: self.box_removed,
            trouble: self.environment.status_message.clone(),
        }
    }

    /// What gateways keep of it.
    #[must_use]
    pub fn route(&self, standing: &Standing) -> Route {
        Route {
            owner: self.environment.owner.clone(),
            status: standing.status,
            cluster: self.environment.cluster.clone(),
            address: standing.address,
        }
    }

    /// What the world is told when it stands like that.
    #[must_use]
    pub fn event(
        &self,
        kind: EventKind,
        standing: &Standing,
        at: DateTime<Utc>,
    ) -> EnvironmentEvent {
        EnvironmentEvent {
            environment_id: self.environment.id.clone(),
            owner: self.environment.owner.clone(),
            kind,
            status: standing.status,
            status_reason: standing.reason,
            status_message: standing.message.clone(),
            exit_code: standing.exit_code,
            at,
        }
    }
}
