//! How the stores phrase a statement. No SQL of any noun lives here.

use std::time::Duration;

use sea_orm::{DbBackend, Statement, Value};

/// A statement for Postgres with `$1`-style parameters.
pub fn statement<const N: usize>(sql: &str, values: [Value; N]) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}

/// Seconds for `make_interval(secs => $n)`.
pub fn seconds(duration: Duration) -> Value {
    duration.as_secs_f64().into()
}

/// Whole numbers that Postgres has as bigint; what is larger is clamped.
pub fn bigint(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

/// A count, which is never negative.
pub fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
