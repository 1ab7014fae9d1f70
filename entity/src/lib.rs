//! Herald's database tables as SeaORM entities. Only the store of the apps uses them.

pub mod app_usage;
pub mod app_usage_slugs;
pub mod app_usage_writers;
pub mod apps;
pub mod audit;
pub mod console_sessions;
pub mod prelude;
