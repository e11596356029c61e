//! Errors of Postgres, and the public error for each.

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use sea_orm::{DbErr, RuntimeErr, SqlErr};

use crate::metrics;

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

/// The SQLSTATE of an error; the manual of Postgres lists the codes in appendix A.
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

/// Whether a retry may succeed: no connection, no free connection, a stopping server, a
/// statement that was cancelled after its timeout, a deadlock.
fn is_transient(error: &DbErr) -> bool {
    if matches!(error, DbErr::Conn(_) | DbErr::ConnectionAcquire(_)) {
        return true;
    }
    match sql_state(error) {
        Some(state) => {
            // Connection exception, insufficient resources, operator intervention (which is also
            // a cancelled statement), transaction rollback.
            ["08", "53", "57", "40"]
                .into_iter()
                .any(|class| state.starts_with(class))
        }
        // Without a state the server did not answer: the connection is broken.
        None => matches!(error, DbErr::Exec(_) | DbErr::Query(_)),
    }
}

/// The error for the caller; the detail is logged here, once.
#[must_use]
pub fn public_error(error: &DbErr) -> Error {
    if is_transient(error) {
        metrics::failed("unavailable");
        tracing::warn!(error = %ErrorChain(&error), "database not available");
        Error::new(
            ErrorCode::Unavailable,
            "the database cannot be reached; try again",
        )
    } else {
        metrics::failed("internal");
        tracing::error!(error = %ErrorChain(&error), "database statement failed");
        Error::internal()
    }
}

/// The name of the unique constraint that a write violated. `None` for every other error.
#[must_use]
pub fn violated_unique_constraint(error: &DbErr) -> Option<String> {
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
