//! Creates the tables of the usage of each app by the hour.
//!
//! No row refers to the table `apps`, because the usage of a deleted app stays.

use sea_orm_migration::{prelude::*, schema::*};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let figures = [
            AppUsage::Publications,
            AppUsage::Deliveries,
            AppUsage::BytesIn,
            AppUsage::BytesOut,
            AppUsage::Joins,
            AppUsage::RefusedJoins,
            AppUsage::ConnectionsPeak,
            AppUsage::ConnectionMs,
            AppUsage::Replayed,
        ];
        let mut usage = Table::create()
            .table(AppUsage::Table)
            .col(integer(AppUsage::AppId))
            .col(big_integer(AppUsage::Hour))
            .col(string_len(AppUsage::Node, 63))
            .to_owned();
        for figure in figures {
            usage.col(big_integer(figure).default(0));
        }
        let key = [AppUsage::AppId, AppUsage::Hour, AppUsage::Node];
        usage
            .primary_key(key.into_iter().fold(&mut Index::create(), |key, column| key.col(column)));
        manager.create_table(usage).await?;
        let hour =
            Index::create().name(HOUR_INDEX).table(AppUsage::Table).col(AppUsage::Hour).to_owned();
        manager.create_index(hour).await?;
        let slugs = Table::create()
            .table(AppUsageSlugs::Table)
            .col(integer(AppUsageSlugs::AppId).primary_key())
            .col(string_len(AppUsageSlugs::Slug, 63))
            .to_owned();
        manager.create_table(slugs).await?;
        let writers = Table::create()
            .table(AppUsageWriters::Table)
            .col(string_len(AppUsageWriters::Writer, 36).primary_key())
            .col(big_integer(AppUsageWriters::Batch))
            .col(big_integer(AppUsageWriters::Hour))
            .to_owned();
        manager.create_table(writers).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(AppUsageWriters::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(AppUsageSlugs::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(AppUsage::Table).to_owned()).await
    }
}

const HOUR_INDEX: &str = "app_usage_hour";

#[derive(DeriveIden)]
enum AppUsage {
    Table,
    AppId,
    Hour,
    Node,
    Publications,
    Deliveries,
    BytesIn,
    BytesOut,
    Joins,
    RefusedJoins,
    ConnectionsPeak,
    ConnectionMs,
    Replayed,
}

#[derive(DeriveIden)]
enum AppUsageSlugs {
    Table,
    AppId,
    Slug,
}

#[derive(DeriveIden)]
enum AppUsageWriters {
    Table,
    Writer,
    Batch,
    Hour,
}
