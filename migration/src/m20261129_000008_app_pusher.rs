//! Adds an app's settings for Pusher's clients, which find their app by its key.
//!
//! From this migration on, a key must name one app, whether it is the app's current or its previous key.
//! Indexes make the current keys unique, and the previous ones. The store makes sure that no key is in both
//! columns, but rows that were written by SQL may violate that.

use std::collections::BTreeMap;

use sea_orm_migration::{prelude::*, schema::*};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    /// Fails if the key of an app is the previous key of another, and names both.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let shared = apps_that_share_a_key(manager).await?;
        if !shared.is_empty() {
            return Err(DbErr::Migration(refusal(&shared)));
        }
        for column in columns() {
            let add = Table::alter().table(Apps::Table).add_column(column).to_owned();
            manager.alter_table(add).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [Apps::AuthorizedOnly, Apps::SubscriptionCount, Apps::Pusher] {
            let drop = Table::alter().table(Apps::Table).drop_column(column).to_owned();
            manager.alter_table(drop).await?;
        }
        Ok(())
    }
}

fn columns() -> [ColumnDef; 3] {
    [
        boolean(Apps::Pusher).default(true).to_owned(),
        boolean(Apps::SubscriptionCount).default(true).to_owned(),
        boolean(Apps::AuthorizedOnly).default(false).to_owned(),
    ]
}

/// The slugs of all apps that share a key, current or previous: a list for each such key.
async fn apps_that_share_a_key(manager: &SchemaManager<'_>) -> Result<Vec<Vec<String>>, DbErr> {
    let all = Query::select()
        .columns([Apps::Key, Apps::PreviousKey, Apps::Slug])
        .from(Apps::Table)
        .order_by(Apps::Id, Order::Asc)
        .to_owned();
    let mut slugs_by_key = BTreeMap::<String, Vec<String>>::new();
    for row in manager.get_connection().query_all(&all).await? {
        let key: String = row.try_get("", "key")?;
        let previous: Option<String> = row.try_get("", "previous_key")?;
        let slug: String = row.try_get("", "slug")?;
        // The two pairs of one app may have the same key.
        let previous = previous.filter(|previous| *previous != key);
        for key in [Some(key), previous].into_iter().flatten() {
            slugs_by_key.entry(key).or_default().push(slug.clone());
        }
    }
    Ok(slugs_by_key.into_values().filter(|slugs| slugs.len() > 1).collect())
}

fn refusal(shared: &[Vec<String>]) -> String {
    let groups: Vec<_> = shared.iter().map(|slugs| slugs.join(", ")).collect();
    format!(
        "the key of an app is the previous key of another ({}), and a key must name one app from this \
         version on; end the previous pair in SQL (UPDATE apps SET previous_key = NULL, \
         previous_secret = NULL, previous_key_expires_at = NULL WHERE slug = '<slug>') or give the \
         other app another key (UPDATE apps SET key = '<new key>' WHERE slug = '<slug>'), then migrate \
         again",
        groups.join("; ")
    )
}

#[derive(DeriveIden)]
enum Apps {
    Table,
    Id,
    Slug,
    Key,
    PreviousKey,
    Pusher,
    SubscriptionCount,
    AuthorizedOnly,
}
