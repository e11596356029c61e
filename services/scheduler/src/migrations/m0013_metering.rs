//! The metered use of environments, by hour.

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

/// `usage_meters` has the part of each environment's run that is in `usage_hours`. Its rows end with
/// their environments; those of `usage_hours` stay longer.
const UP: &str = "
CREATE TABLE usage_meters (
    environment_id text PRIMARY KEY REFERENCES environments (id) ON DELETE CASCADE,
    -- Until when the run is metered.
    metered_at     timestamptz NOT NULL,
    -- The last counters of the box.
    cpu_ns         bigint NOT NULL DEFAULT 0,
    egress_bytes   bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

CREATE TABLE usage_hours (
    environment_id       text NOT NULL,
    begins_at            timestamptz NOT NULL,
    owner                text NOT NULL,
    -- As they were when the hour was metered last.
    labels               jsonb NOT NULL,
    running_seconds      double precision NOT NULL DEFAULT 0,
    cpu_seconds          double precision NOT NULL DEFAULT 0,
    reserved_cpu_seconds double precision NOT NULL DEFAULT 0,
    memory_byte_seconds  double precision NOT NULL DEFAULT 0,
    storage_byte_seconds double precision NOT NULL DEFAULT 0,
    egress_bytes         bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (environment_id, begins_at)
);
CREATE INDEX usage_hours_owner ON usage_hours (owner, begins_at);
CREATE INDEX usage_hours_begin ON usage_hours (begins_at);
";
