//! Adds the previous key pair of an app, and the times at which its pairs were last used.

use sea_orm_migration::{prelude::*, schema::*};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const INDEX: &str = "apps_previous_key_unique";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    /// The index makes the previous keys unique. The store makes sure that they differ from the current ones.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in columns() {
            let add = Table::alter().table(Apps::Table).add_column(column).to_owned();
            manager.alter_table(add).await?;
        }
        let index = Index::create()
            .name(INDEX)
            .table(Apps::Table)
            .col(Apps::PreviousKey)
            .unique()
            .to_owned();
        manager.create_index(index).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_index(Index::drop().name(INDEX).table(Apps::Table).to_owned()).await?;
        let columns = [
            Apps::PreviousKeyLastUsedAt,
            Apps::PreviousKeyExpiresAt,
            Apps::PreviousSecret,
            Apps::PreviousKey,
            Apps::KeyLastUsedAt,
        ];
        for column in columns {
            let drop = Table::alter().table(Apps::Table).drop_column(column).to_owned();
            manager.alter_table(drop).await?;
        }
        Ok(())
    }
}

fn columns() -> [ColumnDef; 5] {
    [
        timestamp_with_time_zone_null(Apps::KeyLastUsedAt),
        string_len_null(Apps::PreviousKey, 255),
        string_len_null(Apps::PreviousSecret, 255),
        timestamp_with_time_zone_null(Apps::PreviousKeyExpiresAt),
        timestamp_with_time_zone_null(Apps::PreviousKeyLastUsedAt),
    ]
}

#[derive(DeriveIden)]
enum Apps {
    Table,
    KeyLastUsedAt,
    PreviousKey,
    PreviousSecret,
    PreviousKeyExpiresAt,
    PreviousKeyLastUsedAt,
}
