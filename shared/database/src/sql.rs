//! Helpers with which the stores write statements.

use std::time::Duration;

use sea_orm::sea_query::Expr;
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement, Value,
};

/// A statement for Postgres with `$1`-style placeholders.
pub fn statement(text: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, text, values)
}

/// Seconds for `make_interval(secs => $n)`.
#[must_use]
pub fn seconds(duration: Duration) -> Value {
    duration.as_secs_f64().into()
}

/// A whole number for a `bigint` column; a larger one is clamped.
#[must_use]
pub fn bigint(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

/// The time `duration` before now, by Postgres' clock.
#[must_use]
pub fn ago(duration: Duration) -> Expr {
    Expr::cust_with_values("now() - make_interval(secs => $1)", [seconds(duration)])
}

/// The time `duration` after now, by Postgres' clock.
#[must_use]
pub fn from_now(duration: Duration) -> Expr {
    Expr::cust_with_values("now() + make_interval(secs => $1)", [seconds(duration)])
}

/// The value of a `bigint` column that is never negative, such as a count or a sum of
/// quantities.
///
/// # Errors
/// When the row has no such column.
pub fn unsigned(row: &QueryResult, column: &str) -> Result<u64, DbErr> {
    Ok(u64::try_from(row.try_get::<i64>("", column)?).unwrap_or(0))
}

/// Takes the advisory lock of `name` within `class` until the transaction ends.
///
/// # Errors
/// When the database fails.
pub async fn advisory_lock(
    transaction: &DatabaseTransaction,
    class: i32,
    name: &str,
) -> Result<(), DbErr> {
    let lock = statement(
        "SELECT pg_advisory_xact_lock($1, hashtext($2))",
        [class.into(), name.into()],
    );
    transaction.query_one_raw(lock).await?;
    Ok(())
}
