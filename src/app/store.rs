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
mod migrations;
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
use sea_orm::{DatabaseConnection, DatabaseTransaction, TransactionTrait};
use secrecy::ExposeSecret;
use tokio::time::timeout;

pub use apps::AppListing;
pub use connect::MissingFile;
pub use error::{StoreError, UniqueField};
pub use migrations::Migration;
pub use rows::UnreadableRow;

use connect::{open_postgres, open_sqlite};
use error::{is_unheard, reason};

use super::database::Database;

/// The apps' database. Cheap to clone; one pool of connections.
#[derive(Debug, Clone)]
pub struct AppStore {
    db: DatabaseConnection,
    name: Arc<str>,
    query_timeout: Duration,
    /// The longest wait for another process that migrates the database.
    connect_retry: Duration,
}

impl AppStore {
    /// Connects. A PostgreSQL server that does not answer, and an SQLite file that another connection changes, are
    /// retried for `connect_retry`.
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
        let (query_timeout, connect_retry) = (settings.query_timeout, settings.connect_retry);
        Ok(Self { db, name: name.into(), query_timeout, connect_retry })
    }

    /// The name of the database in messages.
    pub fn name(&self) -> &str {
        &self.name
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
}

/// The current time, in the precision that both databases keep.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}
