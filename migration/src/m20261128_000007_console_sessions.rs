//! Creates the table of the console's sessions.

use sea_orm_migration::{prelude::*, schema::*};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table(ConsoleSessions::Table)
            .col(string_len(ConsoleSessions::Id, 64).primary_key())
            .col(integer_null(ConsoleSessions::AppId))
            .col(string_len(ConsoleSessions::RestsOn, 64))
            .col(timestamp_with_time_zone(ConsoleSessions::ExpiresAt))
            .to_owned();
        manager.create_table(table).await?;
        let index = Index::create()
            .name("console_sessions_expires_at")
            .table(ConsoleSessions::Table)
            .col(ConsoleSessions::ExpiresAt)
            .to_owned();
        manager.create_index(index).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(ConsoleSessions::Table).to_owned()).await
    }
}

#[derive(DeriveIden)]
enum ConsoleSessions {
    Table,
    Id,
    AppId,
    RestsOn,
    ExpiresAt,
}
