//! An environment as the scheduler's database has it.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::environment::{
    Environment, EnvironmentEvent, EnvironmentRequest, EventKind, Route, Status, StatusReason,
};
use agentbox_contracts::units::{Bytes, MilliCpu};
use chrono::{DateTime, Utc};

use crate::environment::entity;
use crate::environment::plan::Intent;
use crate::environment::request::Quantities;
use crate::environment::state::LifecycleState;
use crate::environment::warm_claim::WarmClaim;

/// An environment, with the columns that only the scheduler reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Without its variables, which are in `sealed_variables`.
    pub environment: Environment,
    /// See `Store::open`.
    pub sealed_variables: Option<Vec<u8>>,
    /// The request's resources, parsed when it was created.
    pub quantities: Quantities,
    pub start_deadline: DateTime<Utc>,
    pub capacity_reserved: bool,
    pub terminating_at: Option<DateTime<Utc>>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    pub box_removed: bool,
    /// Its box may not have the present network policy yet.
    pub network_policy_pending: bool,
    /// What is left to do for the claim of its warm box.
    pub claim: Option<WarmClaim>,
}

/// A column has a value that this version cannot read.
#[derive(Debug, thiserror::Error)]
#[error("environment `{id}`: column `{column}` cannot be read: {problem}")]
pub struct CorruptRow {
    pub id: String,
    pub column: &'static str,
    pub problem: String,
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl TryFrom<entity::Model> for Record {
    type Error = CorruptRow;

    fn try_from(row: entity::Model) -> Result<Self, CorruptRow> {
        let id = row.id.clone();
        let corrupt = |column: &'static str, problem: String| CorruptRow {
            id: id.clone(),
            column,
            problem,
        };
        let mut request: EnvironmentRequest =
            serde_json::from_value(row.request).map_err(|e| corrupt("request", e.to_string()))?;
        request.name = row.name;
        request.labels =
            serde_json::from_value(row.labels).map_err(|e| corrupt("labels", e.to_string()))?;
        request.timeout_s = unsigned(row.timeout_s);
        request.idle_timeout_s = row.idle_timeout_s.map(unsigned);
        if let Some(policy) = row.network_policy {
            let policy = serde_json::from_value(policy)
                .map_err(|e| corrupt("network_policy", e.to_string()))?;
            let isolation = request.isolation.get_or_insert_default();
            isolation.network_policy = Some(policy);
        }
        let status = row
            .status
            .parse::<Status>()
            .map_err(|_| corrupt("status", format!("`{}` is not a status", row.status)))?;
        let status_reason = row
            .status_reason
            .map(|text| {
                text.parse::<StatusReason>()
                    .map_err(|_| corrupt("status_reason", format!("`{text}` is not a reason")))
            })
            .transpose()?;
        let address = row
            .address
            .map(|text| {
                text.parse::<SocketAddr>()
                    .map_err(|e| corrupt("address", e.to_string()))
            })
            .transpose()?;
        let pool = row
            .pool
            .map(|pool| serde_json::from_value(pool).map_err(|e| corrupt("pool", e.to_string())))
            .transpose()?;
        let claim = WarmClaim::from_columns(row.claim.as_deref(), row.claim_address.as_deref())
            .map_err(|problem| corrupt("claim", problem))?;
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
                last_active_at: row.last_active_at,
                exit_code: row.exit_code,
                endpoint: row.endpoint,
                namespace: row.namespace,
                address,
                generation: row.generation,
                pool,
            },
            sealed_variables: row.sealed_variables,
            quantities: Quantities {
                cpu: MilliCpu(unsigned(row.cpu_milli)),
                memory: Bytes(unsigned(row.memory_bytes)),
                storage: Bytes(unsigned(row.storage_bytes)),
            },
            start_deadline: row.start_deadline,
            capacity_reserved: row.capacity_reserved,
            terminating_at: row.terminating_at,
            grace: Duration::from_millis(unsigned(row.grace_ms)),
            box_removed: row.box_removed,
            network_policy_pending: row.network_policy_pending,
            claim,
        })
    }
}

impl Record {
    /// The part that transitions change.
    #[must_use]
    pub fn state(&self) -> LifecycleState {
        let environment = &self.environment;
        LifecycleState {
            status: environment.status,
            reason: environment.status_reason,
            message: environment.status_message.clone(),
            exit_code: environment.exit_code,
            started_at: environment.started_at,
            ended_at: environment.ended_at,
            address: environment.address,
        }
    }

    /// The part that the plan reads.
    #[must_use]
    pub fn intent(&self) -> Intent {
        Intent {
            status: self.environment.status,
            created_at: self.environment.created_at,
            start_deadline: self.start_deadline,
            capacity_reserved: self.capacity_reserved,
            terminating_at: self.terminating_at,
            grace: self.grace,
            box_removed: self.box_removed,
            network_policy_pending: self.network_policy_pending,
            claim: self.claim,
            last_error: self.environment.status_message.clone(),
        }
    }

    /// The route that is published when the environment is in `state`.
    #[must_use]
    pub fn route(&self, state: &LifecycleState) -> Route {
        Route {
            owner: self.environment.owner.clone(),
            status: state.status,
            cluster: self.environment.cluster.clone(),
            address: state.address,
        }
    }

    /// The event that is published when the environment is in `state`.
    #[must_use]
    pub fn event(
        &self,
        kind: EventKind,
        state: &LifecycleState,
        at: DateTime<Utc>,
    ) -> EnvironmentEvent {
        EnvironmentEvent {
            environment_id: self.environment.id.clone(),
            owner: self.environment.owner.clone(),
            kind,
            status: state.status,
            status_reason: state.reason,
            status_message: state.message.clone(),
            exit_code: state.exit_code,
            pool: self.environment.pool.clone(),
            execution: None,
            at,
        }
    }
}
