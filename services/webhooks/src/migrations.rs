//! The schema `webhooks`, version by version. A released migration never changes.

mod m0001_webhooks;

use sea_orm_migration::{MigrationTrait, MigratorTrait, async_trait};

pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_webhooks::Migration)]
    }
}
