//! The table `app_usage`: what an app used within one hour, one row for each node that counted it.

// The derive makes a dozen public items per table that take no doc comment.
#![allow(missing_docs)]

use sea_orm::entity::prelude::*;

/// A row of `app_usage`.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "app_usage")]
pub struct Model {
    /// The number of an app, which may have been deleted.
    #[sea_orm(primary_key, auto_increment = false)]
    pub app_id: i32,
    /// The hour, counted from the beginning of 1970, UTC.
    #[sea_orm(primary_key, auto_increment = false)]
    pub hour: i64,
    /// The seat of the node that counted; empty for a server without a cluster.
    #[sea_orm(primary_key, auto_increment = false)]
    pub node: String,
    pub publications: i64,
    pub deliveries: i64,
    pub bytes_in: i64,
    pub bytes_out: i64,
    pub joins: i64,
    pub refused_joins: i64,
    pub connections_peak: i64,
    pub connection_ms: i64,
    pub replayed: i64,
}

impl ActiveModelBehavior for ActiveModel {}
