//! The table `audit`: one row per change to an app.

// The derive makes a dozen public items per table that take no doc comment.
#![allow(missing_docs)]

use sea_orm::entity::prelude::*;

/// A row of `audit`, as the database has it.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub at: DateTimeUtc,
    pub actor: String,
    pub address: Option<String>,
    pub action: String,
    /// No relation: the row outlives the app.
    pub app_id: i32,
    pub app: String,
    /// A JSON list of strings.
    #[sea_orm(column_type = "Text")]
    pub fields: String,
}

impl ActiveModelBehavior for ActiveModel {}
