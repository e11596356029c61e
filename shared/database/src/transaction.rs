//! Beginning a transaction, so that nothing written in the next one is lost.

use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};

/// Begins a transaction; always to be used instead of the connection's own `begin`.
///
/// A `begin` that is dropped after BEGIN was sent and before its answer came gives its
/// connection back with the transaction open (sqlx-postgres 0.9.0 counts it only after the
/// answer), and what the next one writes there is lost. In a task of its own it is never
/// dropped half-way: the pool's and the server's timeouts bound it, and a transaction that
/// nobody waits for any more is rolled back when it is dropped.
///
/// # Errors
/// When the database fails or has no free connection in time.
#[allow(
    clippy::disallowed_methods,
    reason = "this is what is to be called instead"
)]
pub async fn begin(database: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let database = database.clone();
    tokio::spawn(async move { database.begin().await })
        .await
        .map_err(|error| DbErr::Custom(format!("the transaction was not begun: {error}")))?
}
