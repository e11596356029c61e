//! The executions whose events are in the outbox.

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

/// A row says that the start of an execution was reported; `ended`: its end too. Only environments with
/// the label have rows.
const UP: &str = "
CREATE TABLE reported_executions (
    environment_id text NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
    execution_id   text NOT NULL,
    ended          boolean NOT NULL,
    PRIMARY KEY (environment_id, execution_id)
);
-- The boxes that are looked at every few seconds.
CREATE INDEX environments_execution_events ON environments (id)
    WHERE status = 'running' AND labels ->> 'execution-events' = 'true';
";
