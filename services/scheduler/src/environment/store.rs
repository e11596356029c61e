//! Every SQL statement about environments, about their owners' registry credentials, about warm
//! pools and their boxes, about the states of clusters, about metered use, and about reported executions.
//!
//! Reads go through the sea-orm entity `environments`. SQL text is for statements that an
//! entity cannot express: a change together with its outbox rows (I2), claims, lists that
//! are answered from indexes.
//!
//! * I1. A write that follows from a read row carries its `generation` and `status` in the
//!   WHERE clause; a late writer gets [`StoreError::Fenced`] and changes nothing.
//! * I2. A change and its outbox rows are written in one statement or one transaction.
//! * I3. Outbox rows of one environment are numbered in the order of its changes: each is
//!   inserted while its environment's row is locked.
//! * I4. Times that replicas compare are Postgres' own.

mod activity;
mod change;
mod claims;
mod clusters;
mod create;
mod credentials;
mod execution_events;
mod list;
mod messages;
mod metering;
mod outbox;
mod pool_size;
mod pools;
mod queue;
mod statistics;
mod sweep;
mod unreadable;
mod variables;
mod warm_boxes;

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::{EnvironmentId, InstanceId, UserId};
use agentbox_database::secret::{MasterSecret, SecretError};
use agentbox_database::sql::statement;
use agentbox_database::{Leases, span};
use sea_orm::sea_query::{
    Expr, ExprTrait as _, PostgresQueryBuilder, QueryStatementWriter, SimpleExpr,
};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbErr, EntityTrait as _, FromQueryResult as _,
    QueryFilter as _, QuerySelect as _, Statement, Value,
};
use tracing::Instrument as _;

pub use change::{Change, Patch, QueueAction};
pub use claims::{BoxNeed, ClaimOutcome};
pub use create::Reservation;
pub use list::Listing;
pub use metering::{RunningBox, UsageSample};
pub use outbox::{ClaimAction, LEASE as OUTBOX_LEASE, OutboxBatch, OutboxMessage, OutboxRow};
pub use pools::PoolRow;
pub use queue::{Claim, ClaimRenewal};
pub use statistics::{Backlog, OwnerUse, Statistics, StatusCount};
pub use sweep::ActiveEnvironment;
use unreadable::{UnreadableRows, environment_id};
pub use warm_boxes::{LEASE as WARM_BOX_LEASE, WarmBox, WarmStatus, WarmWork};

use crate::environment::entity::{self, Column, Entity};
use crate::environment::record::{CorruptRow, Record};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database failed")]
    Database(#[from] DbErr),
    /// Another writer changed the row first.
    #[error("the environment was changed by another writer")]
    Fenced,
    #[error(transparent)]
    Corrupt(#[from] CorruptRow),
    #[error("a value cannot be written as JSON")]
    Encode(#[from] serde_json::Error),
    #[error(
        "the variables of environment `{id}` cannot be used: was AGENTBOX_SCHEDULER_SECRET changed?"
    )]
    Sealed {
        id: String,
        #[source]
        source: SecretError,
    },
    #[error(
        "the registry credential `{name}` cannot be used: was AGENTBOX_SCHEDULER_SECRET changed?"
    )]
    SealedCredential {
        name: String,
        #[source]
        source: SecretError,
    },
    /// A public error, passed on unchanged: a quota, a conflict.
    #[error(transparent)]
    Refused(#[from] Error),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database(error) => agentbox_database::public_error(&error),
            StoreError::Fenced => Self::new(
                ErrorCode::Conflict,
                "the environment was changed by another request at the same time; try again",
            ),
            StoreError::Corrupt(_)
            | StoreError::Encode(_)
            | StoreError::Sealed { .. }
            | StoreError::SealedCredential { .. } => {
                tracing::error!(error = %ErrorChain(&error), "row not read or not written");
                Self::internal()
            }
            StoreError::Refused(error) => error,
        }
    }
}

/// The environments of this deployment, in Postgres.
#[derive(Clone)]
pub struct Store {
    database: DatabaseConnection,
    /// Under which variables and registry credentials are sealed.
    secret: MasterSecret,
}

/// The values of a statement's placeholders, in order.
#[derive(Default)]
struct Params(Vec<Value>);

impl Params {
    /// Adds a value; returns its placeholder.
    fn push(&mut self, value: impl Into<Value>) -> String {
        self.0.push(value.into());
        format!("${}", self.0.len())
    }

    /// Adds several values; returns their placeholders with commas between.
    fn push_all(&mut self, values: &[String]) -> String {
        let each: Vec<_> = values
            .iter()
            .map(|value| self.push(value.as_str()))
            .collect();
        each.join(", ")
    }
}

/// The text of a statement that sea-query built, and its values: the start of a longer one.
fn build(query: &impl QueryStatementWriter) -> (String, Params) {
    let (text, values) = query.build(PostgresQueryBuilder);
    (text, Params(values.0))
}

/// The row is unchanged since `before` was read (I1).
fn is_unchanged(before: &Record) -> SimpleExpr {
    let environment = &before.environment;
    Expr::col(Column::Id)
        .eq(environment.id.as_str())
        .and(Expr::col(Column::Generation).eq(environment.generation))
        .and(Expr::col(Column::Status).eq(environment.status.as_str()))
}

/// The id of the row is one of `ids`. They are one value, because the number of placeholders is
/// limited.
fn is_one_of(ids: &[EnvironmentId]) -> Result<SimpleExpr, StoreError> {
    Ok(Expr::cust_with_values(
        "id IN (SELECT jsonb_array_elements_text($1))",
        [serde_json::to_value(ids)?],
    ))
}

fn records(rows: Vec<entity::Model>) -> Result<Vec<Record>, StoreError> {
    let records = rows.into_iter().map(Record::try_from);
    Ok(records.collect::<Result<_, _>>()?)
}

impl Store {
    #[must_use]
    pub fn new(database: DatabaseConnection, secret: MasterSecret) -> Self {
        Self { database, secret }
    }

    /// The leases of this schema, for the replica `holder`.
    #[must_use]
    pub fn leases(&self, holder: InstanceId) -> Leases {
        Leases::new(self.database.clone(), holder)
    }

    /// One environment; `None` when there is none with this id.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn get(&self, id: &EnvironmentId) -> Result<Option<Record>, StoreError> {
        get(&self.database, id.as_str())
            .instrument(span!(SELECT environments))
            .await
    }

    /// Those of `ids` that exist, each as [`Self::get`] returns it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn get_many(
        &self,
        ids: &[EnvironmentId],
    ) -> Result<Vec<Result<Record, CorruptRow>>, StoreError> {
        let rows = Entity::find()
            .filter(is_one_of(ids)?)
            .all(&self.database)
            .instrument(span!(SELECT environments))
            .await?;
        Ok(rows.into_iter().map(Record::try_from).collect())
    }

    /// The owners of those of `ids` that exist.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owners(
        &self,
        ids: &[EnvironmentId],
    ) -> Result<BTreeMap<EnvironmentId, UserId>, StoreError> {
        let owners: Vec<(String, String)> = Entity::find()
            .select_only()
            .columns([Column::Id, Column::Owner])
            .filter(is_one_of(ids)?)
            .into_tuple()
            .all(&self.database)
            .instrument(span!(SELECT environments))
            .await?;
        let parse = |(id, owner): (String, String)| {
            let corrupt = |column, value: &str| CorruptRow {
                id: id.clone(),
                column,
                problem: format!("`{value}` is not an id"),
            };
            let environment = id.parse().map_err(|_| corrupt("id", &id))?;
            let user = owner.parse().map_err(|_| corrupt("owner", &owner))?;
            Ok((environment, user))
        };
        owners.into_iter().map(parse).collect()
    }

    /// Runs a fenced write that returns the whole row, if it was unchanged.
    async fn write(&self, text: String, params: Params) -> Result<Record, StoreError> {
        write(&self.database, text, params).await
    }

    /// Runs `statement` and returns the column `environment_id` of its rows. Skips ids that cannot
    /// be read.
    async fn environment_ids(
        &self,
        statement: Statement,
    ) -> Result<Vec<EnvironmentId>, StoreError> {
        let rows = self.database.query_all_raw(statement).await?;
        let mut ids = Vec::with_capacity(rows.len());
        let mut unreadable = UnreadableRows::default();
        for row in rows {
            let id: String = row.try_get("", "environment_id")?;
            ids.extend(unreadable.skip(environment_id(&id)));
        }
        unreadable.report();
        Ok(ids)
    }

    /// Whether the database answers within `timeout`.
    pub async fn ping(&self, timeout: Duration) -> bool {
        let ping = self.database.query_one_raw(statement("SELECT 1", []));
        matches!(tokio::time::timeout(timeout, ping).await, Ok(Ok(_)))
    }
}

async fn get(connection: &impl ConnectionTrait, id: &str) -> Result<Option<Record>, StoreError> {
    let row = Entity::find_by_id(id).one(connection).await?;
    Ok(row.map(Record::try_from).transpose()?)
}

async fn write(
    connection: &impl ConnectionTrait,
    text: String,
    params: Params,
) -> Result<Record, StoreError> {
    let row = connection
        .query_one_raw(statement(text, params.0))
        .await?
        .ok_or(StoreError::Fenced)?;
    Ok(entity::Model::from_query_result(&row, "")?.try_into()?)
}
