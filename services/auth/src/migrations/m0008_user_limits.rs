//! The limits of users.

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

/// An absent limit is the limit of the deployment.
const UP: &str = "ALTER TABLE users ADD COLUMN limits jsonb NOT NULL DEFAULT '{}'";
