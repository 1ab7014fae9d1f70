//! Migrations: their state, and how they are applied and reverted.
//!
//! Several servers may start at the same moment on one new database. All migrations of a call therefore run in
//! one transaction, which excludes every other process that migrates the same database: in PostgreSQL it holds
//! an advisory lock, and in SQLite it is the only writer. The lock ends with the transaction, so a process that
//! is killed leaves neither a lock nor half a migration.

use herald_migration::{MigrationStatus, Migrator, MigratorTrait};
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, SqliteTransactionMode, Statement,
    TransactionOptions, TransactionTrait,
};
use tokio::time::{Instant, sleep};

use super::{
    AppStore, StoreError,
    connect::RETRY_PAUSE,
    error::{is_busy, reason},
};

/// The number of the advisory lock in PostgreSQL: the letters `herald`.
const LOCK: i64 = 0x6865_7261_6c64;

/// A migration, applied or not.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Migration {
    /// Its name, which begins with its date.
    pub name: String,
    /// Whether it is applied to the database.
    pub is_applied: bool,
}

impl AppStore {
    /// Applies all pending migrations, or the next `steps`: either all of them or none. While another process
    /// migrates the same database, waits for it for `connect_retry`. The migrations themselves may take any time.
    /// If nothing is pending, waits for nobody.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] with the reason why a migration failed, [`StoreError::Unavailable`] if another
    /// process still migrates, or if the database does not answer before the first migration.
    pub async fn migrate_up(&self, steps: Option<u32>) -> Result<(), StoreError> {
        if !self.has_pending().await? {
            return Ok(());
        }
        let alone = self.begin_alone().await?;
        let done = Migrator::up(&alone, steps).await;
        self.end_alone(alone, done).await
    }

    /// Reverts the last `steps` migrations, and drops the data of the tables and columns that they had added:
    /// either all of them or none.
    ///
    /// # Errors
    /// As [`Self::migrate_up`].
    pub async fn migrate_down(&self, steps: u32) -> Result<(), StoreError> {
        let alone = self.begin_alone().await?;
        let done = Migrator::down(&alone, Some(steps)).await;
        self.end_alone(alone, done).await
    }

    /// Lists all migrations, oldest first. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Unusable`], also if the database has migrations that this version does not know;
    /// [`StoreError::Unavailable`] if it does not answer within `query_timeout`.
    pub async fn migrations(&self) -> Result<Vec<Migration>, StoreError> {
        let all = self.query(self.read_migrations()).await?;
        let state = |migration: herald_migration::Migration| Migration {
            name: migration.name().to_owned(),
            is_applied: migration.status() == MigrationStatus::Applied,
        };
        Ok(all.into_iter().map(state).collect())
    }

    /// Returns whether a migration is pending.
    ///
    /// # Errors
    /// As [`Self::migrations`].
    pub async fn has_pending(&self) -> Result<bool, StoreError> {
        Ok(self.migrations().await?.iter().any(|migration| !migration.is_applied))
    }

    async fn read_migrations(&self) -> Result<Vec<herald_migration::Migration>, StoreError> {
        match Migrator::get_migration_with_status_read_only(&self.db).await {
            // sea-orm's error for a migration that is applied and not known, among others.
            Err(error @ DbErr::Custom(_)) => {
                Err(self.explain_unknown(error).await.unwrap_or_else(|error| failed(&error)))
            }
            read => read.map_err(|error| failed(&error)),
        }
    }

    /// Makes the error for a database with migrations that this version does not know.
    ///
    /// # Errors
    /// `error` if there is no such migration; or the reason why the database does not list them.
    async fn explain_unknown(&self, error: DbErr) -> Result<StoreError, DbErr> {
        let ask = "SELECT version FROM seaql_migrations ORDER BY version";
        let ask = Statement::from_string(self.db.get_database_backend(), ask);
        let rows = self.db.query_all_raw(ask).await?;
        let mut unknown = rows
            .iter()
            .map(|row| row.try_get("", "version"))
            .collect::<Result<Vec<String>, _>>()?;
        let known = Migrator::get_migration_files();
        unknown.retain(|name| known.iter().all(|migration| migration.name() != name));
        let Some(newest) = unknown.last() else { return Err(error) };
        Ok(StoreError::Unusable(format!(
            "a newer Herald has migrated it (its newest migration is {newest}): use that version, or let it undo \
             what this version does not know: `herald migrate down --steps {}`",
            unknown.len()
        )))
    }

    /// Begins a transaction that no other process can begin at the same time.
    async fn begin_alone(&self) -> Result<DatabaseTransaction, StoreError> {
        let give_up = Instant::now() + self.connect_retry;
        let mut is_told = false;
        loop {
            let begun = match self.db.get_database_backend() {
                DbBackend::Postgres => self.query(self.try_lock()).await?,
                _ => self
                    .try_write()
                    .await
                    .map_err(|error| StoreError::from(error).of(&self.name))?,
            };
            if let Some(alone) = begun {
                return Ok(alone);
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = format!(
                    "another process migrates it, and has not finished within {:?} \
                     (database.connect_retry)",
                    self.connect_retry
                );
                return Err(StoreError::Unavailable(why).of(&self.name));
            }
            if !is_told {
                log::info!("another process migrates {}: waiting until it has finished", self.name);
                is_told = true;
            }
            sleep(RETRY_PAUSE.min(left)).await;
        }
    }

    /// Begins a transaction in PostgreSQL that holds the lock; `None` if another process holds it.
    async fn try_lock(&self) -> Result<Option<DatabaseTransaction>, DbErr> {
        let transaction = self.db.begin().await?;
        let ask = format!("SELECT pg_try_advisory_xact_lock({LOCK}) AS is_held");
        let answer = transaction.query_one_raw(Statement::from_string(DbBackend::Postgres, ask));
        let is_held = answer.await?.map(|row| row.try_get::<bool>("", "is_held")).transpose()?;
        match is_held {
            Some(true) => Ok(Some(transaction)),
            _ => transaction.rollback().await.map(|()| None),
        }
    }

    /// Begins a transaction in SQLite that may write; `None` if another connection has written for `query_timeout`,
    /// which is SQLite's own bound on this wait.
    async fn try_write(&self) -> Result<Option<DatabaseTransaction>, DbErr> {
        // A transaction that begins by reading would fail once it writes.
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        match self.db.begin_with_options(options).await {
            Err(error) if is_busy(&error) => Ok(None),
            begun => begun.map(Some),
        }
    }

    /// Commits what has been done, or else rolls it back.
    async fn end_alone(
        &self,
        alone: DatabaseTransaction,
        done: Result<(), DbErr>,
    ) -> Result<(), StoreError> {
        let ended = match done {
            Ok(()) => alone.commit().await,
            Err(error) => {
                // If the rollback fails, too, the database rolls back when the connection ends.
                if let Err(error) = alone.rollback().await {
                    log::debug!("rolling back a migration: {}", reason(&error));
                }
                Err(error)
            }
        };
        ended.map_err(|error| failed(&error).of(&self.name))
    }
}

fn failed(error: &DbErr) -> StoreError {
    StoreError::Unusable(format!("a migration failed: {}", reason(error)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::MissingFile, *};
    use crate::app::database::Database;

    #[actix_web::test]
    async fn an_error_without_an_unknown_migration_stays_what_it_is() {
        let settings = Database {
            url: "sqlite::memory:".into(),
            connections_max: 1,
            connect_retry: Duration::ZERO,
            query_timeout: Duration::from_secs(10),
            migrate: true,
            seed: false,
        };
        let store = AppStore::connect(&settings, MissingFile::Refuse).await.expect("a store");
        store.migrate_up(None).await.expect("migrations");
        let error = DbErr::Custom("something else".into());
        let explained = store.explain_unknown(error).await.expect_err("nothing to explain");
        assert_eq!(explained.to_string(), "Custom Error: something else");
    }
}
