//! Migrations of a schema. The replica that starts first applies them.

use sea_orm::{ConnectionTrait, DatabaseConnection};
use sea_orm_migration::MigratorTrait;

use crate::{DatabaseError, begin};

/// Applies the migrations of `M` that `schema` lacks. Replicas that start together take
/// turns; the later ones find nothing to do.
///
/// # Errors
/// When Postgres refuses a migration or the connection is lost.
pub async fn migrate<M: MigratorTrait>(
    database: &DatabaseConnection,
    schema: &'static str,
) -> Result<(), DatabaseError> {
    let failed = |source| DatabaseError::Migrate { schema, source };
    let transaction = begin(database).await.map_err(failed)?;
    // Held until the end of the transaction.
    transaction
        .execute_unprepared(&format!(
            "SELECT pg_advisory_xact_lock(hashtext('agentbox.migrate.{schema}'))"
        ))
        .await
        .map_err(failed)?;
    transaction
        .execute_unprepared(&format!("CREATE SCHEMA IF NOT EXISTS {schema}"))
        .await
        .map_err(failed)?;
    M::up(&transaction, None).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)
}
