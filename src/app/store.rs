//! The store: the apps in a database, SQLite or PostgreSQL. Only this file and those of its folder use
//! SeaORM.
//!
//! SQLite runs with a write-ahead log and full synchronisation, and every write runs in an explicit
//! transaction whose commit is awaited: a confirmed write is on disk, and a killed process leaves
//! the file intact. No error here carries the database's URL, which may hold a password.

mod apps;
mod connect;
pub mod console;
mod error;
mod rows;
mod trail;
pub mod usage;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::{DateTime, SubsecRound, Utc};
use herald_migration::{MigrationStatus, Migrator, MigratorTrait};
use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
use secrecy::ExposeSecret;
use tokio::time::timeout;

pub use apps::AppListing;
pub use connect::MissingFile;
pub use error::{StoreError, UniqueField};
pub use rows::UnreadableRow;

use connect::{open_postgres, open_sqlite};
use error::{is_unheard, reason};

use super::database::Database;

/// A migration, applied or not.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Migration {
    /// Its name, which begins with its date.
    pub name: String,
    /// Whether it is applied to the database.
    pub is_applied: bool,
}

/// The apps' database. Cheap to clone; one pool of connections.
#[derive(Debug, Clone)]
pub struct AppStore {
    db: DatabaseConnection,
    name: Arc<str>,
    query_timeout: Duration,
}

impl AppStore {
    /// Connects; a PostgreSQL server that does not answer is retried for `connect_retry`.
    ///
    /// A new SQLite file is readable by its owner only.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] at once for a URL or a file that cannot be used,
    /// [`StoreError::Unavailable`] when the time is over.
    pub async fn connect(settings: &Database, missing: MissingFile) -> Result<Self, StoreError> {
        let name = settings.name();
        let opened = match settings.url.expose_secret() {
            url if url.starts_with("sqlite:") => open_sqlite(url, settings, missing).await,
            url if url.starts_with("postgres:") || url.starts_with("postgresql:") => {
                open_postgres(url, settings, &name).await
            }
            _ => {
                let expected = "its URL must begin with sqlite:// or postgres://";
                Err(StoreError::Unusable(expected.into()))
            }
        };
        let db = opened.map_err(|error| error.of(&name))?;
        Ok(Self { db, name: name.into(), query_timeout: settings.query_timeout })
    }

    /// The name of the database in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Applies all pending migrations, or the next `steps`.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] with the reason; an incomplete migration is rolled back.
    pub async fn migrate_up(&self, steps: Option<u32>) -> Result<(), StoreError> {
        Migrator::up(&self.db, steps).await.map_err(|error| self.migration_failed(&error))
    }

    /// Reverts the last `steps` migrations, and drops the data of the tables and columns that they had added.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] with the reason.
    pub async fn migrate_down(&self, steps: u32) -> Result<(), StoreError> {
        Migrator::down(&self.db, Some(steps)).await.map_err(|error| self.migration_failed(&error))
    }

    /// Lists all migrations, oldest first. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Unusable`], also if the database has migrations that this version does not
    /// know.
    pub async fn migrations(&self) -> Result<Vec<Migration>, StoreError> {
        let all = Migrator::get_migration_with_status_read_only(&self.db).await;
        let state = |migration: herald_migration::Migration| Migration {
            name: migration.name().to_owned(),
            is_applied: migration.status() == MigrationStatus::Applied,
        };
        let all = all.map_err(|error| self.migration_failed(&error))?;
        Ok(all.into_iter().map(state).collect())
    }

    /// Returns whether a migration is pending.
    ///
    /// # Errors
    /// As [`Self::migrations`].
    pub async fn has_pending(&self) -> Result<bool, StoreError> {
        Ok(self.migrations().await?.iter().any(|migration| !migration.is_applied))
    }

    /// Closes all connections, including those of clones.
    pub async fn close(&self) {
        if let Err(error) = self.db.clone().close().await {
            log::debug!("closing the database: {}", reason(&error));
        }
    }

    /// Runs `change` in a separate transaction and awaits the commit; an error rolls it back. A
    /// commit that is not answered in time may still happen: its error says so, and a caller that
    /// keeps a copy of the table must read it again.
    ///
    /// A statement that returns rows must not run in autocommit mode: sqlx stops an SQLite
    /// statement after the row it wants and drops the error of the commit that follows
    /// (launchbadge/sqlx#3430), so a write that never reached the disk would be taken for a
    /// success.
    async fn write<T>(
        &self,
        change: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let is_committing = AtomicBool::new(false);
        let done = self.query(async {
            let transaction = self.db.begin().await?;
            let done = change(&transaction).await?;
            is_committing.store(true, Relaxed);
            let committed = transaction.commit().await;
            // The database's answer is final; the outcome is uncertain only if the answer was lost.
            is_committing.store(committed.as_ref().is_err_and(is_unheard), Relaxed);
            committed.map(|()| done).map_err(StoreError::from)
        });
        done.await.map_err(|error| match error {
            StoreError::Unavailable(reason) if is_committing.load(Relaxed) => {
                StoreError::Unavailable(format!("{reason}; the change may have been made"))
            }
            error => error,
        })
    }

    async fn query<T, E: Into<StoreError>>(
        &self,
        query: impl Future<Output = Result<T, E>>,
    ) -> Result<T, StoreError> {
        match timeout(self.query_timeout, query).await {
            Ok(outcome) => outcome.map_err(|error| error.into().of(&self.name)),
            Err(_) => {
                let reason = format!("no answer within {:?}", self.query_timeout);
                Err(StoreError::Unavailable(reason).of(&self.name))
            }
        }
    }

    fn migration_failed(&self, error: &DbErr) -> StoreError {
        StoreError::Unusable(format!("a migration failed: {}", reason(error))).of(&self.name)
    }
}

/// The current time, in the precision that both databases keep.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}
