//! The execution or the path that a ticket is bound to.

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

/// The id of an execution, or the bytes of a path, which need not be UTF-8.
const UP: &str = "
ALTER TABLE tickets
    ADD COLUMN resource bytea,
    DROP CONSTRAINT tickets_action_check,
    ADD CONSTRAINT tickets_action_check CHECK (action IN
        ('logs', 'attach', 'output', 'execution_attach', 'file_download', 'file_upload')),
    ADD CONSTRAINT tickets_resource CHECK
        ((action IN ('logs', 'attach')) = (resource IS NULL));
";
