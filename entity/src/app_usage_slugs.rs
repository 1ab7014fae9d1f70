//! The table `app_usage_slugs`: the slug of each app that has usage, or the last one it had.

// The derive makes a dozen public items per table that take no doc comment.
#![allow(missing_docs)]

use sea_orm::entity::prelude::*;

/// A row of `app_usage_slugs`.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "app_usage_slugs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub app_id: i32,
    pub slug: String,
}

impl ActiveModelBehavior for ActiveModel {}
