//! Tables, columns and triggers under the names that the code uses.

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

/// `observed_generation` was written and never read for a decision.
const UP: &str = "
ALTER TABLE drives RENAME TO reconcile_queue;
ALTER TABLE reconcile_queue RENAME COLUMN until TO claim_expires_at;
ALTER TABLE reconcile_queue RENAME COLUMN again TO requeue;
ALTER TABLE reconcile_queue
    RENAME CONSTRAINT drives_environment_id_fkey TO reconcile_queue_environment_id_fkey;
ALTER INDEX drives_pkey RENAME TO reconcile_queue_pkey;
ALTER INDEX drives_due RENAME TO reconcile_queue_due;
ALTER INDEX drives_cluster RENAME TO reconcile_queue_cluster;

ALTER TABLE environments RENAME COLUMN admitted TO capacity_reserved;
ALTER TABLE environments DROP COLUMN observed_generation;
ALTER INDEX environments_promised_by_cluster RENAME TO environments_reserved_by_cluster;

ALTER FUNCTION follow_terms() RENAME TO sync_environment_terms;
ALTER TRIGGER terms_of_the_new ON environments RENAME TO sync_terms_after_insert;
ALTER TRIGGER terms_of_the_changed ON environments RENAME TO sync_terms_after_update;
";
