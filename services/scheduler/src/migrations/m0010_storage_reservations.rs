//! The indexes of what environments use and reserve, with their storage.

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

const UP: &str = "
DROP INDEX environments_used_by_owner;
CREATE INDEX environments_used_by_owner ON environments (owner)
    INCLUDE (cpu_milli, memory_bytes, storage_bytes)
    WHERE status IN ('pending', 'running', 'terminating');
DROP INDEX environments_reserved_by_cluster;
CREATE INDEX environments_reserved_by_cluster ON environments (cluster)
    INCLUDE (cpu_milli, memory_bytes, storage_bytes)
    WHERE capacity_reserved AND status IN ('pending', 'running', 'terminating');
";
