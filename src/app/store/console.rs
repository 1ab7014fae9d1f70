//! The console's sessions in the database. Only a hash of the bytes of a cookie is stored.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use herald_entity::{console_sessions, prelude::ConsoleSessions as Table};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Set, sea_query::Expr,
};

use super::{AppStore, StoreError, now};
use crate::app::AppId;

/// The most sessions that one app, or the administrator, may have. Beyond them, a new session replaces the one
/// that expires first.
const SESSIONS_MAX: u64 = 100;

/// The most sessions that one query asks for, because SQLite accepts a limited number of values.
const SESSIONS_PER_QUERY: usize = 1_000;

/// A session of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleSession {
    /// The hash of the bytes of the cookie.
    pub id: String,
    /// The app; `None` for the administrator.
    pub app: Option<AppId>,
    /// A keyed hash of the credentials on which the session rests.
    pub rests_on: String,
    /// The time at which the session ends.
    pub expires_at: DateTime<Utc>,
}

impl AppStore {
    /// Adds a session, and removes expired ones and those that it replaces.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn add_console_session(&self, session: &ConsoleSession) -> Result<(), StoreError> {
        let app = session.app.map(|app| app.0);
        let is_of_app = match app {
            Some(app) => console_sessions::Column::AppId.eq(app),
            None => console_sessions::Column::AppId.is_null(),
        };
        let row = console_sessions::ActiveModel {
            id: Set(session.id.clone()),
            app_id: Set(app),
            rests_on: Set(session.rests_on.clone()),
            expires_at: Set(session.expires_at),
        };
        self.write(async |transaction: &DatabaseTransaction| {
            forget_expired(transaction).await?;
            let too_many: Vec<String> = Table::find()
                .select_only()
                .column(console_sessions::Column::Id)
                .filter(is_of_app)
                .order_by_desc(console_sessions::Column::ExpiresAt)
                .offset(SESSIONS_MAX - 1)
                .limit(SESSIONS_MAX)
                .into_tuple()
                .all(transaction)
                .await?;
            if !too_many.is_empty() {
                let give_way = console_sessions::Column::Id.is_in(too_many);
                Table::delete_many().filter(give_way).exec(transaction).await?;
            }
            row.insert(transaction).await?;
            Ok(())
        })
        .await
    }

    /// Finds a session by the hash of the bytes of its cookie. An expired one counts as absent.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn console_session(&self, id: &str) -> Result<Option<ConsoleSession>, StoreError> {
        let row = Table::find_by_id(id).one(&self.db);
        let row = self.query(row).await?.filter(|row| row.expires_at > now());
        Ok(row.map(session))
    }

    /// Finds the sessions with these ids. Expired ones count as absent.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn console_sessions(
        &self,
        ids: &BTreeSet<String>,
    ) -> Result<Vec<ConsoleSession>, StoreError> {
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut found = Vec::new();
        for some in ids.chunks(SESSIONS_PER_QUERY) {
            let is_one = console_sessions::Column::Id.is_in(some.iter().copied());
            let rows = Table::find().filter(is_one).all(&self.db);
            let rows = self.query(rows).await?.into_iter().filter(|row| row.expires_at > now());
            found.extend(rows.map(session));
        }
        Ok(found)
    }

    /// Replaces the credentials on which a session rests.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn rest_console_session(&self, id: &str, rests_on: &str) -> Result<(), StoreError> {
        let update = Table::update_many()
            .col_expr(console_sessions::Column::RestsOn, Expr::value(rests_on))
            .filter(console_sessions::Column::Id.eq(id));
        self.write(async |transaction| Ok(update.exec(transaction).await?)).await.map(drop)
    }

    /// Removes a session.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn end_console_session(&self, id: &str) -> Result<(), StoreError> {
        let delete = Table::delete_by_id(id);
        self.write(async |transaction| Ok(delete.exec(transaction).await?)).await.map(drop)
    }

    /// Removes all sessions that have expired.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn sweep_console_sessions(&self) -> Result<(), StoreError> {
        self.write(async |transaction: &DatabaseTransaction| forget_expired(transaction).await)
            .await
    }
}

fn session(row: console_sessions::Model) -> ConsoleSession {
    ConsoleSession {
        id: row.id,
        app: row.app_id.map(AppId),
        rests_on: row.rests_on,
        expires_at: row.expires_at,
    }
}

async fn forget_expired(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    let is_over = console_sessions::Column::ExpiresAt.lte(now());
    Table::delete_many().filter(is_over).exec(transaction).await?;
    Ok(())
}
