//! Creates the table `apps`.

use sea_orm_migration::{prelude::*, schema::*};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// Runs the migration in a transaction, which both databases support; without this, SQLite would not use one.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let now = Expr::current_timestamp;
        let apps = Table::create()
            .table(Apps::Table)
            // Without AUTOINCREMENT, SQLite gives the id of a deleted row to a later one.
            .col(pk_auto(Apps::Id))
            .col(string_len(Apps::Name, 255))
            .col(string_len(Apps::Slug, 63))
            .col(string_len(Apps::Key, 255))
            .col(string_len(Apps::Secret, 255))
            .col(boolean(Apps::Active).default(true))
            .col(text(Apps::AllowedOrigins).default("[]"))
            .col(string_len(Apps::ClientEvents, 16).default("authorized"))
            .col(boolean(Apps::SharedTokens).default(false))
            .col(timestamp_with_time_zone(Apps::InsertedAt).default(now()))
            .col(timestamp_with_time_zone(Apps::UpdatedAt).default(now()))
            .to_owned();
        manager.create_table(apps).await?;
        manager.create_index(unique("apps_name_unique", Apps::Name)).await?;
        manager.create_index(unique("apps_slug_unique", Apps::Slug)).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Apps::Table).to_owned()).await
    }
}

fn unique(name: &str, column: Apps) -> IndexCreateStatement {
    Index::create().name(name).table(Apps::Table).col(column).unique().to_owned()
}

#[derive(DeriveIden)]
enum Apps {
    Table,
    Id,
    Name,
    Slug,
    Key,
    Secret,
    Active,
    AllowedOrigins,
    ClientEvents,
    SharedTokens,
    InsertedAt,
    UpdatedAt,
}
