//! The table `app_usage_writers`: the number of the last batch of usage that each server has written.

// The derive makes a dozen public items per table that take no doc comment.
#![allow(missing_docs)]

use sea_orm::entity::prelude::*;

/// A row of `app_usage_writers`.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "app_usage_writers")]
pub struct Model {
    /// The random id of a server's ledger.
    #[sea_orm(primary_key, auto_increment = false)]
    pub writer: String,
    /// The number of the ledger's last batch.
    pub batch: i64,
    /// The hour of that write, counted from the beginning of 1970, UTC.
    pub hour: i64,
}

impl ActiveModelBehavior for ActiveModel {}
