//! The table `console_sessions`: one row per login to the console.

// The derive makes a dozen public items per table that take no doc comment.
#![allow(missing_docs)]

use sea_orm::entity::prelude::*;

/// A row of `console_sessions`.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "console_sessions")]
pub struct Model {
    /// The hash of the bytes of the cookie.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// The app; null for the administrator.
    pub app_id: Option<i32>,
    /// A keyed hash of the credentials on which the session rests.
    pub rests_on: String,
    pub expires_at: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {}
