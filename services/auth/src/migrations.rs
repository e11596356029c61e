//! The schema `auth`, version by version. A released migration never changes.

mod m0001_identity;
mod m0002_leases;
mod m0003_acknowledged_deletions;
mod m0004_key_creators;
mod m0005_audit_chain;
mod m0006_ticket_resources;
mod m0007_previews;
mod m0008_user_limits;
mod m0009_gateway_leases;

use sea_orm_migration::{MigrationTrait, MigratorTrait, async_trait};

pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_identity::Migration),
            Box::new(m0002_leases::Migration),
            Box::new(m0003_acknowledged_deletions::Migration),
            Box::new(m0004_key_creators::Migration),
            Box::new(m0005_audit_chain::Migration),
            Box::new(m0006_ticket_resources::Migration),
            Box::new(m0007_previews::Migration),
            Box::new(m0008_user_limits::Migration),
            Box::new(m0009_gateway_leases::Migration),
        ]
    }
}
