//! The key that made a key, and whether a key may do what needs a login.

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

/// A key ends with its creator, so it is deleted with it too.
const UP: &str = "
ALTER TABLE api_keys
    ADD COLUMN management boolean NOT NULL DEFAULT false,
    ADD COLUMN created_by text REFERENCES api_keys ON DELETE CASCADE;
CREATE INDEX api_keys_created_by ON api_keys (created_by) WHERE created_by IS NOT NULL;
";
