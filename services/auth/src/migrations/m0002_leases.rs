//! The table `leases`, for the election of the replica that sweeps.

use agentbox_database::lease::CREATE_LEASES;
use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        connection.execute_unprepared(CREATE_LEASES).await?;
        Ok(())
    }
}
