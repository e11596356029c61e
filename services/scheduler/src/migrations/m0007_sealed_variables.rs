//! The column `sealed_variables`: the variables of an environment, encrypted.

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

/// SQL cannot encrypt: the scheduler's start seals the variables of older rows.
const UP: &str = "ALTER TABLE environments ADD COLUMN sealed_variables bytea";
