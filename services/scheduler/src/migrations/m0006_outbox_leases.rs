//! Claims of outbox rows, so that publishing holds no transaction.

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
CREATE TABLE outbox_leases (
    environment_id text PRIMARY KEY,
    -- NULL: nobody publishes its rows now.
    holder text,
    expires_at timestamptz NOT NULL,
    -- Another publisher was refused: the holder looks again for new rows.
    requeue boolean NOT NULL DEFAULT false
) WITH (fillfactor = 70);
";
