//! Schema `auth`, version by version. A migration that has shipped never changes.

mod m20261124_identity;

use sea_orm_migration::{MigrationTrait, MigratorTrait, async_trait};

pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m20261124_identity::Migration)]
    }
}
