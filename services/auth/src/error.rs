//! What the stores fail with, and its one conversion into what a caller is told.

use agentbox_contracts::error::Error;
use sea_orm::DbErr;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database failed")]
    Database(#[from] DbErr),
    /// Somebody else wrote it, or a migration is missing.
    #[error("a stored {what} cannot be read: {detail}")]
    Corrupt { what: &'static str, detail: String },
}

impl StoreError {
    pub fn corrupt(what: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Corrupt {
            what,
            detail: detail.to_string(),
        }
    }

    /// The unique constraint that the write broke, if that is what happened.
    #[must_use]
    pub fn unique_violation(&self) -> Option<String> {
        match self {
            Self::Database(error) => agentbox_database::is_unique_violation(error),
            Self::Corrupt { .. } => None,
        }
    }

    /// The write named a row that is gone (a user who was deleted meanwhile).
    #[must_use]
    pub fn is_foreign_key_violation(&self) -> bool {
        matches!(self, Self::Database(error)
            if matches!(error.sql_err(), Some(sea_orm::SqlErr::ForeignKeyConstraintViolation(_))))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database(error) => agentbox_database::public_error(&error),
            StoreError::Corrupt { .. } => {
                tracing::error!(%error, "the database holds what auth did not write");
                Self::internal()
            }
        }
    }
}
