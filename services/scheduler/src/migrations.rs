//! The schema `scheduler`, version by version. A released migration never changes.

mod m0001_initial;
mod m0002_terms;
mod m0003_numbers;
mod m0004_lease_expiry;
mod m0005_standard_names;
mod m0006_outbox_leases;
mod m0007_sealed_variables;
mod m0008_audit_outbox;
mod m0009_registry_credentials;
mod m0010_storage_reservations;
mod m0011_idle_and_policy;
mod m0012_cluster_states;
mod m0013_metering;
mod m0014_warm_pools;
mod m0015_execution_events;
mod m0016_users_of_warm_boxes;

use sea_orm_migration::{MigrationTrait, MigratorTrait};

pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_initial::Migration),
            Box::new(m0002_terms::Migration),
            Box::new(m0003_numbers::Migration),
            Box::new(m0004_lease_expiry::Migration),
            Box::new(m0005_standard_names::Migration),
            Box::new(m0006_outbox_leases::Migration),
            Box::new(m0007_sealed_variables::Migration),
            Box::new(m0008_audit_outbox::Migration),
            Box::new(m0009_registry_credentials::Migration),
            Box::new(m0010_storage_reservations::Migration),
            Box::new(m0011_idle_and_policy::Migration),
            Box::new(m0012_cluster_states::Migration),
            Box::new(m0013_metering::Migration),
            Box::new(m0014_warm_pools::Migration),
            Box::new(m0015_execution_events::Migration),
            Box::new(m0016_users_of_warm_boxes::Migration),
        ]
    }
}
