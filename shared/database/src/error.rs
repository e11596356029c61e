//! What Postgres can fail with, and what of it a caller is told.

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use sea_orm::{DbErr, RuntimeErr, SqlErr};

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("cannot connect to Postgres for schema `{schema}`")]
    Connect {
        schema: &'static str,
        #[source]
        source: DbErr,
    },
    #[error("cannot bring schema `{schema}` up to date")]
    Migrate {
        schema: &'static str,
        #[source]
        source: DbErr,
    },
}

/// Postgres' own code for what happened, as in its manual's appendix A.
fn sql_state(error: &DbErr) -> Option<String> {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) =
        error
    else {
        return None;
    };
    error
        .as_database_error()?
        .code()
        .map(|code| code.into_owned())
}

/// Whether trying again later may help: no connection, no free connection, a server
/// that stops, a statement over its time, a deadlock.
fn is_transient(error: &DbErr) -> bool {
    if matches!(error, DbErr::Conn(_) | DbErr::ConnectionAcquire(_)) {
        return true;
    }
    match sql_state(error) {
        Some(state) => {
            state.starts_with("08")
                || state.starts_with("53")
                || state.starts_with("57")
                || state.starts_with("40")
        }
        // A query that did not reach the server has no state: its connection broke.
        None => matches!(error, DbErr::Exec(_) | DbErr::Query(_)),
    }
}

/// The error for the caller; the detail is logged here, once.
#[must_use]
pub fn public_error(error: &DbErr) -> Error {
    if is_transient(error) {
        tracing::warn!(error = %ErrorChain(&error), "the database is not available");
        Error::new(
            ErrorCode::Unavailable,
            "the database cannot be reached; try again",
        )
    } else {
        tracing::error!(error = %ErrorChain(&error), "a database statement failed");
        Error::internal()
    }
}

/// The name of the unique constraint that was violated, if that is what happened.
#[must_use]
pub fn is_unique_violation(error: &DbErr) -> Option<String> {
    let Some(SqlErr::UniqueConstraintViolation(message)) = error.sql_err() else {
        return None;
    };
    let (DbErr::Exec(RuntimeErr::SqlxError(sqlx)) | DbErr::Query(RuntimeErr::SqlxError(sqlx))) =
        error
    else {
        return Some(message);
    };
    let constraint = sqlx
        .as_database_error()
        .and_then(|e| e.constraint())
        .map(ToOwned::to_owned);
    Some(constraint.unwrap_or(message))
}
