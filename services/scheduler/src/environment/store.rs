//! Every SQL statement about an environment.
//!
//! * I1. A write that follows from what was read carries `generation` and `status` in its
//!   WHERE clause; a writer that is late gets [`StoreError::Fenced`] and changes nothing.
//! * I2. A change and what the bus is told of it (the outbox) are one statement or one
//!   transaction.
//! * I3. Outbox rows of one environment are numbered in the order of its changes: each is
//!   inserted while its environment's row is locked.
//! * I4. Times that are compared between replicas are Postgres' own.

mod change;
mod create;
mod drive;
mod list;
mod outbox;
mod sweep;

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::{EnvironmentId, InstanceId, UserId};
use agentbox_database::Leases;
use agentbox_database::sql::statement as sql;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, FromQueryResult, Statement};

pub use change::{Change, Drive, Patch};
pub use create::{Admission, Creation};
pub use drive::{Claim, Held};
pub use list::Listing;
pub use outbox::{Item, OutboxRow, Unpublished};
pub use sweep::Live;

use crate::environment::record::{COLUMNS, CorruptRow, Record, Row};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database failed")]
    Database(#[from] DbErr),
    /// Somebody else changed the row first.
    #[error("the environment has changed meanwhile")]
    Fenced,
    #[error(transparent)]
    Corrupt(#[from] CorruptRow),
    #[error("a value cannot be stored: {0}")]
    Encode(#[from] serde_json::Error),
    /// For the caller as it is: a quota, a conflict.
    #[error(transparent)]
    Refused(#[from] Error),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database(error) => agentbox_database::public_error(&error),
            StoreError::Fenced => Self::new(
                ErrorCode::Conflict,
                "the environment is changing at this moment; try again",
            ),
            StoreError::Corrupt(_) | StoreError::Encode(_) => {
                tracing::error!(%error, "a row cannot be read or written");
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
}

fn record(row: sea_orm::QueryResult) -> Result<Record, StoreError> {
    Ok(Row::from_query_result(&row, "")?.try_into()?)
}

impl Store {
    #[must_use]
    pub fn new(database: DatabaseConnection) -> Self {
        Self { database }
    }

    /// The leases of this schema, for the replica `holder`.
    #[must_use]
    pub fn leases(&self, holder: InstanceId) -> Leases {
        Leases::new(self.database.clone(), holder)
    }

    /// One environment; `None` if there is none of that id.
    ///
    /// # Errors
    /// When the database fails.
    #[tracing::instrument(name = "postgres get", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT"))]
    pub async fn get(&self, id: &EnvironmentId) -> Result<Option<Record>, StoreError> {
        let statement = sql(
            format!("SELECT {COLUMNS} FROM environments WHERE id = $1"),
            [id.as_str().into()],
        );
        self.database
            .query_one_raw(statement)
            .await?
            .map(record)
            .transpose()
    }

    /// The owners of those of `ids` that exist.
    ///
    /// # Errors
    /// When the database fails.
    #[tracing::instrument(name = "postgres owners", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT"))]
    pub async fn owners(
        &self,
        ids: &[EnvironmentId],
    ) -> Result<BTreeMap<EnvironmentId, UserId>, StoreError> {
        let statement = sql(
            "SELECT id, owner FROM environments
             WHERE id IN (SELECT jsonb_array_elements_text($1))",
            [serde_json::to_value(ids)?.into()],
        );
        let rows = self.database.query_all_raw(statement).await?;
        rows.iter()
            .map(|row| {
                let id: String = row.try_get("", "id")?;
                let owner: String = row.try_get("", "owner")?;
                let corrupt = |column, value: &str| CorruptRow {
                    id: id.clone(),
                    column,
                    problem: format!("`{value}` is not an id"),
                };
                let environment = id.parse().map_err(|_| corrupt("id", &id))?;
                let user = owner.parse().map_err(|_| corrupt("owner", &owner))?;
                Ok((environment, user))
            })
            .collect()
    }

    /// The column `environment_id` of what `statement` selects.
    async fn environment_ids(
        &self,
        statement: Statement,
    ) -> Result<Vec<EnvironmentId>, StoreError> {
        let rows = self.database.query_all_raw(statement).await?;
        let ids = rows
            .iter()
            .map(|row| row.try_get::<String>("", "environment_id"));
        Ok(ids
            .collect::<Result<Vec<_>, _>>()?
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect())
    }

    /// Whether the database answers.
    pub async fn answers(&self, within: Duration) -> bool {
        let asked = self.database.query_one_raw(sql("SELECT 1", []));
        matches!(tokio::time::timeout(within, asked).await, Ok(Ok(_)))
    }
}
