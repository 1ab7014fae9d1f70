//! Each table's entity under the table's own name.

pub use super::{
    app_usage::Entity as AppUsage, app_usage_slugs::Entity as AppUsageSlugs,
    app_usage_writers::Entity as AppUsageWriters, apps::Entity as Apps, audit::Entity as Audit,
    console_sessions::Entity as ConsoleSessions,
};
