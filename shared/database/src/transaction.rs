//! Beginning a transaction, safely also when the caller is cancelled.

use sea_orm::{
    AccessMode, DatabaseConnection, DatabaseTransaction, DbErr, IsolationLevel, TransactionTrait,
};

/// Begins a transaction. Always use this instead of the connection's own `begin`.
///
/// The connection's own `begin` may be dropped after BEGIN was sent and before the answer. Then
/// the connection returns to the pool with an open transaction, because sqlx-postgres 0.9.0 counts
/// a transaction only after the answer, and the writes of the connection's next user are lost.
///
/// Here `begin` runs in a task of its own, so a cancelled caller does not drop it. The timeouts of
/// the pool and of the server bound it. A transaction whose caller was cancelled is dropped, and
/// thereby rolled back.
///
/// # Errors
/// When the database fails or has no free connection in time.
pub async fn begin(database: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    begin_with(database, None, None).await
}

/// Begins a transaction whose statements all read the same state: a page of a list, and the number of
/// rows on all pages.
///
/// # Errors
/// As [`begin`].
pub async fn snapshot(database: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let (isolation, access) = (IsolationLevel::RepeatableRead, AccessMode::ReadOnly);
    begin_with(database, Some(isolation), Some(access)).await
}

#[allow(
    clippy::disallowed_methods,
    reason = "the functions here are the replacement"
)]
async fn begin_with(
    database: &DatabaseConnection,
    isolation: Option<IsolationLevel>,
    access: Option<AccessMode>,
) -> Result<DatabaseTransaction, DbErr> {
    let database = database.clone();
    tokio::spawn(async move { database.begin_with_config(isolation, access).await })
        .await
        .map_err(|error| DbErr::Custom(format!("the transaction was not begun: {error}")))?
}
