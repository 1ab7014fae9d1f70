//! Creates the table `audit`.

use sea_orm_migration::{prelude::*, schema::*};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let audit = Table::create()
            .table(Audit::Table)
            .col(big_pk_auto(Audit::Id))
            .col(timestamp_with_time_zone(Audit::At))
            .col(string_len(Audit::Actor, 16))
            .col(string_len_null(Audit::Address, 45))
            .col(string_len(Audit::Action, 16))
            // No foreign key: the row outlives the app.
            .col(integer(Audit::AppId))
            .col(string_len(Audit::App, 63))
            .col(text(Audit::Fields))
            .to_owned();
        manager.create_table(audit).await?;
        manager.create_index(index("audit_app_id", &[Audit::AppId, Audit::Id])).await?;
        manager.create_index(index("audit_app", &[Audit::App, Audit::Id])).await?;
        manager.create_index(index("audit_at", &[Audit::At])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Audit::Table).to_owned()).await
    }
}

fn index(name: &str, columns: &[Audit]) -> IndexCreateStatement {
    let mut index = Index::create();
    index.name(name).table(Audit::Table);
    for column in columns {
        index.col(*column);
    }
    index.to_owned()
}

#[derive(Clone, Copy, DeriveIden)]
enum Audit {
    Table,
    Id,
    At,
    Actor,
    Address,
    Action,
    AppId,
    App,
    Fields,
}
