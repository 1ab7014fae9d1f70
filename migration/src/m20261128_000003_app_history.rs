//! Adds an app's settings of its history; null means the server's default.

use sea_orm_migration::{prelude::*, schema::*};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    /// One statement for each column, because SQLite adds one at a time.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [Apps::HistoryPublications, Apps::HistorySeconds] {
            let add =
                Table::alter().table(Apps::Table).add_column(big_integer_null(column)).to_owned();
            manager.alter_table(add).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [Apps::HistorySeconds, Apps::HistoryPublications] {
            let drop = Table::alter().table(Apps::Table).drop_column(column).to_owned();
            manager.alter_table(drop).await?;
        }
        Ok(())
    }
}

#[derive(DeriveIden)]
enum Apps {
    Table,
    HistoryPublications,
    HistorySeconds,
}
