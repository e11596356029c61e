//! Whether a claim can give a warm box another user.

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

/// False for the boxes that exist: their boxd does not know the user of a claim.
const UP: &str = "
ALTER TABLE warm_boxes
    -- Whether its boxd is known to be root.
    ADD COLUMN is_root boolean NOT NULL DEFAULT false;
";
