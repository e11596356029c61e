//! The clusters that an operator has cordoned or drains.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await?;
        Ok(())
    }
}

/// A cluster without a row takes new environments.
const UP: &str = "
CREATE TABLE cluster_states (
    cluster        text PRIMARY KEY,
    drain_deadline timestamptz,
    changed_at     timestamptz NOT NULL DEFAULT now()
);
";
