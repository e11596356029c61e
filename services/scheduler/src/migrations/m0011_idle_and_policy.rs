//! The idle timeout and the last activity of an environment, and its changed network policy.

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

/// The index has no column that a report of activity changes, so that Postgres rewrites no index
/// for it.
const UP: &str = "
ALTER TABLE environments
    ADD COLUMN idle_timeout_s bigint,
    ADD COLUMN last_active_at timestamptz,
    ADD COLUMN network_policy jsonb,
    ADD COLUMN network_policy_pending boolean NOT NULL DEFAULT false;
CREATE INDEX environments_with_idle_timeout ON environments (id)
    WHERE status = 'running' AND idle_timeout_s IS NOT NULL;
";
