//! Connecting to SQLite and to PostgreSQL.

use std::{path::Path, time::Duration};

use sea_orm::{
    DatabaseConnection, SqlxPostgresConnector, SqlxSqliteConnector,
    sqlx::{
        self, ConnectOptions, Connection,
        postgres::{PgConnectOptions, PgConnection, PgPoolOptions},
        sqlite::{
            SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions,
            SqliteSynchronous,
        },
    },
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    StoreError,
    error::{driver_reason, is_driver_busy},
};
use crate::app::database::Database;

/// The pause between two attempts to connect, and to begin migrations while another process migrates.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The pause between two attempts to open an SQLite database that another connection changes.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// The number of failed attempts of which one is logged.
const TRIES_PER_LOG_LINE: u32 = 10;
const NO_SUCH_FILE: &str = "there is no such file; run this in the folder where the server runs, or name \
    the server's database in DATABASE_URL";
const NO_SUCH_FOLDER: &str = "its folder does not exist; make the folder first, run this where the server \
    runs, or name the server's database in DATABASE_URL";

/// The treatment of a missing SQLite file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingFile {
    /// Creates the file and its folder.
    MakeWithFolder,
    /// Creates the file if its folder exists.
    Make,
    /// Reports an error, because a command on a new empty database would answer that there are no apps.
    Refuse,
}

pub(super) async fn open_sqlite(
    url: &str,
    settings: &Database,
    missing: MissingFile,
) -> Result<DatabaseConnection, StoreError> {
    let options: SqliteConnectOptions =
        url.parse().map_err(|error| StoreError::Unusable(driver_reason(&error)))?;
    let in_memory = settings.is_in_memory();
    let path = options.get_filename().to_owned();
    if !in_memory {
        find_or_make_file(&path, missing)?;
    }
    let options = options
        .foreign_keys(true)
        .busy_timeout(settings.query_timeout)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging();
    let pool = SqlitePoolOptions::new()
        .acquire_timeout(settings.query_timeout)
        .idle_timeout(None)
        .max_lifetime(None);
    // Each in-memory connection has a separate database, so there must be exactly one connection,
    // kept open.
    let pool = match in_memory {
        true => pool.max_connections(1),
        false => pool
            .max_connections(settings.connections_max)
            .before_acquire(|connection, _| Box::pin(knows_its_tables(connection)))
            .after_release(|connection, _| Box::pin(is_out_of_transactions(connection))),
    };
    let give_up = Instant::now() + settings.connect_retry;
    let pool = loop {
        match pool.clone().connect_with(options.clone()).await {
            Ok(pool) => break pool,
            // While several connections switch a new database to a write-ahead log, SQLite refuses some of them
            // without waiting for its busy timeout.
            Err(error) if is_driver_busy(&error) && Instant::now() < give_up => {
                sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(StoreError::Unusable(driver_reason(&error))),
        }
    };
    Ok(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool))
}

/// Returns whether a connection that returns to its pool may be used again; `false` closes it.
///
/// SQLite itself rolls a transaction back when the disk is full. The rollback that sqlx sends
/// afterwards fails, and sqlx counts the transaction as open for ever: its next commit would
/// release a savepoint within a transaction that is never committed.
async fn is_out_of_transactions(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // The answer follows everything that was sent before, including a pending rollback.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// Makes a connection of the pool notice that another connection has changed the tables. Always returns
/// `true`.
///
/// SQLite notices this when it runs a statement, not when it compiles one. A connection that has run
/// nothing since a migration would compile the quoted name of a new column as a text, and sqlx would
/// keep the column names of that wrong result.
async fn knows_its_tables(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    sqlx::query("SELECT 1 FROM sqlite_schema LIMIT 0").execute(connection).await.map(|_| true)
}

/// Makes sure that the file exists, and that no other user can read a new one, because it holds
/// secrets.
fn find_or_make_file(path: &Path, missing: MissingFile) -> Result<(), StoreError> {
    let unusable = |error: std::io::Error| StoreError::Unusable(error.to_string());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match (missing, folder) {
        (MissingFile::Refuse, _) if !path.exists() => {
            return Err(StoreError::Unusable(NO_SUCH_FILE.into()));
        }
        (MissingFile::Make, Some(folder)) if !folder.exists() => {
            return Err(StoreError::Unusable(NO_SUCH_FOLDER.into()));
        }
        (MissingFile::MakeWithFolder, Some(folder)) => {
            std::fs::create_dir_all(folder).map_err(unusable)?;
        }
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop).map_err(unusable)
}

pub(super) async fn open_postgres(
    url: &str,
    settings: &Database,
    name: &str,
) -> Result<DatabaseConnection, StoreError> {
    let options: PgConnectOptions =
        url.parse().map_err(|error| StoreError::Unusable(driver_reason(&error)))?;
    let options = options.application_name("herald").disable_statement_logging();
    wait_for(&options, settings, name).await?;
    let pool = PgPoolOptions::new()
        .max_connections(settings.connections_max)
        .acquire_timeout(settings.query_timeout)
        .connect_lazy_with(options);
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Tries single connections until one succeeds: unlike a pool, they report why they fail.
async fn wait_for(
    options: &PgConnectOptions,
    settings: &Database,
    name: &str,
) -> Result<(), StoreError> {
    let give_up = Instant::now() + settings.connect_retry;
    for tries in 0_u32.. {
        let reason =
            match timeout(settings.query_timeout, PgConnection::connect_with(options)).await {
                Ok(Ok(connection)) => {
                    // A failure to close needs no action.
                    drop(connection.close().await);
                    break;
                }
                Ok(Err(error)) => driver_reason(&error),
                Err(_) => format!("no answer within {:?}", settings.query_timeout),
            };
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(StoreError::Unavailable(reason));
        }
        if tries.is_multiple_of(TRIES_PER_LOG_LINE) {
            log::warn!(
                "database {name} does not answer, trying for another {} s: {reason}",
                left.as_secs()
            );
        }
        sleep(RETRY_PAUSE.min(left)).await;
    }
    Ok(())
}
