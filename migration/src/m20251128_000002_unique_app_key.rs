//! Makes the key of an app unique.

use std::collections::BTreeMap;

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const INDEX: &str = "apps_key_unique";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    /// Fails if apps share a key, and names them, because the operator must decide which of them keeps it.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let shared = apps_that_share_a_key(manager).await?;
        if !shared.is_empty() {
            return Err(DbErr::Migration(refusal(&shared)));
        }
        let index =
            Index::create().name(INDEX).table(Apps::Table).col(Apps::Key).unique().to_owned();
        manager.create_index(index).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_index(Index::drop().name(INDEX).table(Apps::Table).to_owned()).await
    }
}

/// The slugs of all apps whose key another app has, too: a list for each such key.
async fn apps_that_share_a_key(manager: &SchemaManager<'_>) -> Result<Vec<Vec<String>>, DbErr> {
    let all = Query::select()
        .columns([Apps::Key, Apps::Slug])
        .from(Apps::Table)
        .order_by(Apps::Id, Order::Asc)
        .to_owned();
    let mut slugs_by_key = BTreeMap::<String, Vec<String>>::new();
    for row in manager.get_connection().query_all(&all).await? {
        let slugs = slugs_by_key.entry(row.try_get("", "key")?).or_default();
        slugs.push(row.try_get("", "slug")?);
    }
    Ok(slugs_by_key.into_values().filter(|slugs| slugs.len() > 1).collect())
}

fn refusal(shared: &[Vec<String>]) -> String {
    let groups: Vec<_> = shared.iter().map(|slugs| slugs.join(", ")).collect();
    format!(
        "apps have the same key ({}), and keys must be unique from this version on; let one app of \
         each group keep it and give every other a key of its own, in SQL (UPDATE apps SET key = \
         '<new key>' WHERE slug = '<slug>') or with the previous version (herald apps update <slug> \
         --new-key), then migrate again",
        groups.join("; ")
    )
}

#[derive(DeriveIden)]
enum Apps {
    Table,
    Id,
    Slug,
    Key,
}
