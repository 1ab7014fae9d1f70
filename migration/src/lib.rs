//! Herald's migrations: one set for SQLite and PostgreSQL, each with a way back.

pub use sea_orm_migration::{Migration, MigrationStatus, MigratorTrait};
use sea_orm_migration::{MigrationTrait, async_trait};

mod m20250601_000001_create_apps;
mod m20251128_000002_unique_app_key;
mod m20261128_000003_app_history;
mod m20261128_000004_app_key_rotation;
mod m20261128_000005_create_audit;
mod m20261128_000006_app_usage;
mod m20261128_000007_console_sessions;
mod m20261129_000008_app_pusher;

/// All migrations, oldest first.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20250601_000001_create_apps::Migration),
            Box::new(m20251128_000002_unique_app_key::Migration),
            Box::new(m20261128_000003_app_history::Migration),
            Box::new(m20261128_000004_app_key_rotation::Migration),
            Box::new(m20261128_000005_create_audit::Migration),
            Box::new(m20261128_000006_app_usage::Migration),
            Box::new(m20261128_000007_console_sessions::Migration),
            Box::new(m20261129_000008_app_pusher::Migration),
        ]
    }
}
