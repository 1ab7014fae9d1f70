//! Herald's migrations: one set for SQLite and PostgreSQL, each with a way back.

pub use sea_orm_migration::{Migration, MigrationStatus, MigratorTrait};
use sea_orm_migration::{MigrationTrait, async_trait};

mod m20250601_000001_create_apps;
mod m20251128_000002_unique_app_key;
mod m20261128_000003_app_history;

/// All migrations, oldest first.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20250601_000001_create_apps::Migration),
            Box::new(m20251128_000002_unique_app_key::Migration),
            Box::new(m20261128_000003_app_history::Migration),
        ]
    }
}
