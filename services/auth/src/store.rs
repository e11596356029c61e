//! The parts that every store shares: its error, transactions and locks.

use agentbox_contracts::error::Error;
use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, SqlErr};

/// The class of auth's advisory locks. The scheduler may use the same database, with other
/// classes.
pub const ADVISORY_LOCK: i32 = 10;

/// The database failed, or a row has a value that auth never writes.
#[derive(Debug, thiserror::Error)]
#[error("the database failed")]
pub struct StoreError(#[from] DbErr);

impl StoreError {
    /// The unique constraint that the write violated, if that is why it failed.
    #[must_use]
    pub fn unique_violation(&self) -> Option<String> {
        agentbox_database::violated_unique_constraint(&self.0)
    }

    /// Whether the write referred to a missing row, such as a user that was deleted meanwhile.
    #[must_use]
    pub fn is_foreign_key_violation(&self) -> bool {
        let violation = self.0.sql_err();
        matches!(violation, Some(SqlErr::ForeignKeyConstraintViolation(_)))
    }
}

impl From<StoreError> for Error {
    fn from(StoreError(error): StoreError) -> Self {
        agentbox_database::public_error(&error)
    }
}

/// Begins a transaction.
///
/// # Errors
/// When Postgres fails or has no free connection in time.
pub async fn begin(database: &DatabaseConnection) -> Result<DatabaseTransaction, StoreError> {
    Ok(agentbox_database::begin(database).await?)
}

/// Begins a transaction whose statements all read the same state.
///
/// # Errors
/// As [`begin`].
pub async fn snapshot(database: &DatabaseConnection) -> Result<DatabaseTransaction, StoreError> {
    Ok(agentbox_database::snapshot(database).await?)
}

/// Commits a transaction.
///
/// # Errors
/// When Postgres fails. Whether the transaction was written is then unknown.
pub async fn commit(transaction: DatabaseTransaction) -> Result<(), StoreError> {
    Ok(transaction.commit().await?)
}

/// The number of rows on one page: `limit`, at most 1,000.
#[must_use]
pub fn page_limit(limit: u32) -> u64 {
    u64::from(limit.min(1_000))
}

/// `offset` as a `bigint`: a larger one is clamped.
#[must_use]
pub fn page_offset(offset: u64) -> u64 {
    offset.min(i64::MAX.unsigned_abs())
}
