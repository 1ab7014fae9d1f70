//! The table `apps`: one row per tenant.

// The derive makes a dozen public items per table that take no doc comment.
#![allow(missing_docs)]

use std::fmt;

use sea_orm::entity::prelude::*;

/// A row of `apps`, as the database has it. Its values have not been checked.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "apps")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i32,
    #[sea_orm(unique)]
    pub name: String,
    #[sea_orm(unique)]
    pub slug: String,
    #[sea_orm(unique)]
    pub key: String,
    pub secret: Secret,
    pub active: bool,
    /// A JSON list of strings. The column is text and not JSON, so that one row with an invalid value, written by
    /// hand, does not make the whole table unreadable.
    #[sea_orm(column_type = "Text")]
    pub allowed_origins: String,
    pub client_events: String,
    pub shared_tokens: bool,
    /// Null means the server's default, here and below. The type is as large as SQLite's integers, so that one row
    /// with an invalid value, written by hand, does not make the whole table unreadable.
    pub history_publications: Option<i64>,
    pub history_seconds: Option<i64>,
    pub pusher: bool,
    pub subscription_count: bool,
    pub authorized_only: bool,
    pub key_last_used_at: Option<DateTimeUtc>,
    /// The key of the previous pair, while that pair is valid.
    #[sea_orm(unique)]
    pub previous_key: Option<String>,
    pub previous_secret: Option<Secret>,
    pub previous_key_expires_at: Option<DateTimeUtc>,
    pub previous_key_last_used_at: Option<DateTimeUtc>,
    pub inserted_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {}

/// A column whose value is never printed.
#[derive(Clone, PartialEq, Eq, DeriveValueType)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}
