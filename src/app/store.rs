//! The store: apps in a database, SQLite or PostgreSQL. The only file that speaks SeaORM.
//!
//! SQLite runs with a write-ahead log and full synchronisation, and every write runs in an explicit
//! transaction whose commit is awaited: a confirmed write is on disk, and a killed process leaves
//! the file intact. No error here carries the database's URL, which may hold a password.

use std::{
    future::Future,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::{DateTime, SubsecRound, Utc};
use herald_entity::{apps, prelude::Apps as Table};
use herald_migration::{MigrationStatus, Migrator, MigratorTrait};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait,
    ModelTrait, QueryFilter, QueryOrder, QuerySelect, RuntimeErr, Set, SqlErr,
    SqlxPostgresConnector, SqlxSqliteConnector, TransactionTrait, Unchanged,
    sqlx::{
        self, ConnectOptions, Connection,
        postgres::{PgConnectOptions, PgConnection, PgPoolOptions},
        sqlite::{
            SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions,
            SqliteSynchronous,
        },
    },
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, sleep, timeout};

use super::{App, AppId, Slug, database::Database, fields::AppValues, settings::AppSettings};

/// How long to wait between two attempts to connect.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// One in this many failed attempts is logged.
const TRIES_PER_LOG_LINE: u32 = 10;

const NO_SUCH_FILE: &str = "there is no such file; run this in the folder where the server runs, or name \
    the server's database in DATABASE_URL";
const NO_SUCH_FOLDER: &str = "its folder does not exist; make the folder first, run this where the server \
    runs, or name the server's database in DATABASE_URL";

/// Why the database did not do a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It is unreachable, too slow, or refused: a retry may succeed. A write may still have
    /// happened.
    #[error("database is unavailable: {0}")]
    Unavailable(String),
    /// Another app has this already.
    #[error("{} has already been taken", .0.as_str())]
    Taken(UniqueField),
    /// It cannot be used in its present configuration; a retry does not help.
    #[error("database cannot be used: {0}")]
    Unusable(String),
}

/// A field whose value is unique among the apps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UniqueField {
    /// The name.
    Name,
    /// The slug.
    Slug,
    /// The key.
    Key,
}

impl UniqueField {
    /// The field's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Slug => "slug",
            Self::Key => "key",
        }
    }
}

impl StoreError {
    /// Adds the name of the database to an error.
    fn of(self, database: &str) -> Self {
        let named = |reason| format!("{database}: {reason}");
        match self {
            Self::Unavailable(reason) => Self::Unavailable(named(reason)),
            Self::Unusable(reason) => Self::Unusable(named(reason)),
            Self::Taken(field) => Self::Taken(field),
        }
    }
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(text)) => Self::Taken(violated(&text)),
            _ => Self::Unavailable(reason(&error)),
        }
    }
}

/// The field that a database names when it refuses a value that another row has: SQLite names the
/// column, PostgreSQL the index.
fn violated(text: &str) -> UniqueField {
    let names = |field: &str| {
        text.contains(&format!("apps.{field}")) || text.contains(&format!("apps_{field}_unique"))
    };
    let fields = [UniqueField::Slug, UniqueField::Key];
    fields.into_iter().find(|field| names(field.as_str())).unwrap_or(UniqueField::Name)
}

/// Whether the error leaves open if the database did the request.
fn is_unheard(error: &DbErr) -> bool {
    let (DbErr::Conn(RuntimeErr::SqlxError(error))
    | DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))) = error
    else {
        return true;
    };
    !matches!(**error, sqlx::Error::Database(_))
}

/// The reason for an error, in the database's words where these cannot hold a secret.
fn reason(error: &DbErr) -> String {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => driver_reason(error),
        DbErr::ConnectionAcquire(_) => "no connection could be had in time".into(),
        DbErr::Migration(reason) => reason.clone(),
        other => other.to_string(),
    }
}

fn driver_reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        // These messages may quote the URL.
        sqlx::Error::Configuration(_) => "its URL cannot be understood".into(),
        other => other.to_string(),
    }
}

/// All apps of the database.
#[derive(Debug, Default)]
pub struct Listing {
    /// Oldest first.
    pub apps: Vec<App>,
    /// Rows that are not valid apps, because they were written by hand. They are not served.
    pub unreadable: Vec<UnreadableRow>,
}

/// A row that is not a valid app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableRow {
    /// Its primary key.
    pub id: AppId,
    /// The column whose value is not valid.
    pub column: &'static str,
}

/// A migration, applied or not.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Migration {
    /// Its name, which begins with its date.
    pub name: String,
    /// Whether it is applied to the database.
    pub is_applied: bool,
}

/// How connecting treats a missing SQLite file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingFile {
    /// Creates the file and its folder.
    MakeWithFolder,
    /// Creates the file if its folder exists.
    Make,
    /// Refuses, because an empty database in place of the real one has no answers.
    Refuse,
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

    /// Reverts the last `steps` migrations, and drops the data that these made room for.
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

    /// Whether a migration is pending.
    ///
    /// # Errors
    /// As [`Self::migrations`].
    pub async fn has_pending(&self) -> Result<bool, StoreError> {
        Ok(self.migrations().await?.iter().any(|migration| !migration.is_applied))
    }

    /// Closes all connections; clones are closed too.
    pub async fn close(&self) {
        if let Err(error) = self.db.clone().close().await {
            log::debug!("closing the database: {}", reason(&error));
        }
    }

    /// Lists all apps.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn list(&self) -> Result<Listing, StoreError> {
        let rows = Table::find().order_by_asc(apps::Column::Id).all(&self.db);
        let mut listing = Listing::default();
        for row in self.query(rows).await? {
            match read(row) {
                Ok(app) => listing.apps.push(app),
                Err(unreadable) => listing.unreadable.push(unreadable),
            }
        }
        Ok(listing)
    }

    /// Finds an app; an invalid row counts as absent.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn find(&self, slug: &Slug) -> Result<Option<App>, StoreError> {
        let row = Table::find().filter(apps::Column::Slug.eq(slug.as_str())).one(&self.db);
        Ok(self.query(row).await?.and_then(|row| read(row).ok()))
    }

    /// Finds the app that has this name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn id_by_name(&self, name: &str) -> Result<Option<AppId>, StoreError> {
        self.id_where(apps::Column::Name.eq(name)).await
    }

    /// Finds the app that has this slug.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn id_by_slug(&self, slug: &Slug) -> Result<Option<AppId>, StoreError> {
        self.id_where(apps::Column::Slug.eq(slug.as_str())).await
    }

    /// Finds the app that has this key.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn id_by_key(&self, key: &str) -> Result<Option<AppId>, StoreError> {
        self.id_where(apps::Column::Key.eq(key)).await
    }

    async fn id_where(
        &self,
        condition: sea_orm::sea_query::SimpleExpr,
    ) -> Result<Option<AppId>, StoreError> {
        let id = Table::find()
            .select_only()
            .column(apps::Column::Id)
            .filter(condition)
            .into_tuple::<i32>()
            .one(&self.db);
        Ok(self.query(id).await?.map(AppId))
    }

    /// Adds an app.
    ///
    /// # Errors
    /// [`StoreError::Taken`], [`StoreError::Unavailable`].
    pub async fn insert(&self, values: &AppValues) -> Result<App, StoreError> {
        let now = now();
        let mut row = apps::ActiveModel {
            name: Set(values.name.clone()),
            slug: Set(values.slug.to_string()),
            key: Set(values.key.clone()),
            secret: Set(stored_secret(&values.secret)),
            inserted_at: Set(now),
            updated_at: Set(now),
            ..Default::default()
        };
        for (name, stored) in values.settings.stored() {
            row.set(column(name), to_column(stored));
        }
        let id = self.write(async |transaction| Ok(row.insert(transaction).await?.id)).await?;
        Ok(app(AppId(id), values.clone(), (now, now)))
    }

    /// Changes `current` to `values`, writing only the columns that differ; `None` if the app no
    /// longer exists.
    ///
    /// # Errors
    /// [`StoreError::Taken`], [`StoreError::Unavailable`].
    pub async fn update(
        &self,
        current: &App,
        values: &AppValues,
    ) -> Result<Option<App>, StoreError> {
        let now = now();
        let row = changed_columns(current, values, now);
        let update = async |transaction: &DatabaseTransaction| match row.update(transaction).await {
            Ok(_) => Ok(true),
            Err(DbErr::RecordNotUpdated | DbErr::RecordNotFound(_)) => Ok(false),
            Err(error) => Err(error),
        };
        let is_updated = self.write(update).await?;
        Ok(is_updated.then(|| app(current.id, values.clone(), (current.inserted_at, now))))
    }

    /// Removes an app, or an invalid row; `None` if there is neither.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn delete(&self, slug: &Slug) -> Result<Option<AppId>, StoreError> {
        let Some(id) = self.id_by_slug(slug).await? else { return Ok(None) };
        let delete = async |transaction: &DatabaseTransaction| {
            Table::delete_by_id(id.0).exec(transaction).await
        };
        let deleted = self.write(delete).await?;
        Ok((deleted.rows_affected > 0).then_some(id))
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
        change: impl AsyncFnOnce(&DatabaseTransaction) -> Result<T, DbErr>,
    ) -> Result<T, StoreError> {
        let is_committing = AtomicBool::new(false);
        let done = self.query(async {
            let transaction = self.db.begin().await?;
            let done = change(&transaction).await?;
            is_committing.store(true, Relaxed);
            let committed = transaction.commit().await;
            // The database's answer is final; the outcome is uncertain only if the answer was lost.
            is_committing.store(committed.as_ref().is_err_and(is_unheard), Relaxed);
            committed.map(|()| done)
        });
        done.await.map_err(|error| match error {
            StoreError::Unavailable(reason) if is_committing.load(Relaxed) => {
                StoreError::Unavailable(format!("{reason}; the change may have been made"))
            }
            error => error,
        })
    }

    async fn query<T>(
        &self,
        query: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, StoreError> {
        match timeout(self.query_timeout, query).await {
            Ok(outcome) => outcome.map_err(|error| StoreError::from(error).of(&self.name)),
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

async fn open_sqlite(
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
            .after_release(|connection, _| Box::pin(is_out_of_transactions(connection))),
    };
    let pool = pool
        .connect_with(options)
        .await
        .map_err(|error| StoreError::Unusable(driver_reason(&error)))?;
    Ok(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool))
}

/// Whether a connection that returns to its pool may be used again; `false` closes it.
///
/// SQLite itself rolls a transaction back when the disk is full. The rollback that sqlx sends
/// afterwards fails, and sqlx counts the transaction as open for ever: its next commit would
/// release a savepoint within a transaction that is never committed.
async fn is_out_of_transactions(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // The answer follows everything that was sent before, including a pending rollback.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
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

async fn open_postgres(
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

/// The current time, in the precision that both databases keep.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

fn stored_secret(secret: &SecretString) -> apps::Secret {
    apps::Secret(secret.expose_secret().to_owned())
}

/// The column of a setting; both have the same name.
fn column(setting: &str) -> apps::Column {
    setting.parse().expect("every setting has a column: a test reads them all")
}

/// The value of a boolean, a text or a nullable number column.
fn to_column(stored: serde_json::Value) -> sea_orm::Value {
    match stored {
        serde_json::Value::String(text) => text.into(),
        serde_json::Value::Bool(flag) => flag.into(),
        // PostgreSQL accepts only a null of the column's type, and only numbers can be null.
        number => number.as_i64().into(),
    }
}

fn of_column(value: sea_orm::Value) -> serde_json::Value {
    match value {
        sea_orm::Value::Bool(flag) => flag.into(),
        sea_orm::Value::String(text) => text.into(),
        sea_orm::Value::BigInt(number) => number.into(),
        _ => serde_json::Value::Null,
    }
}

fn changed_columns(app: &App, values: &AppValues, now: DateTime<Utc>) -> apps::ActiveModel {
    let mut row = apps::ActiveModel { id: Unchanged(app.id.0), ..Default::default() };
    if values.name != app.name {
        row.name = Set(values.name.clone());
    }
    if values.slug != app.slug {
        row.slug = Set(values.slug.to_string());
    }
    if values.key != app.key {
        row.key = Set(values.key.clone());
    }
    if values.secret.expose_secret() != app.secret.expose_secret() {
        row.secret = Set(stored_secret(&values.secret));
    }
    for (given, current) in values.settings.stored().into_iter().zip(app.settings.stored()) {
        if given != current {
            row.set(column(given.0), to_column(given.1));
        }
    }
    row.updated_at = Set(now);
    row
}

fn app(id: AppId, values: AppValues, times: (DateTime<Utc>, DateTime<Utc>)) -> App {
    App {
        id,
        name: values.name,
        slug: values.slug,
        key: values.key,
        secret: values.secret,
        settings: values.settings,
        inserted_at: times.0,
        updated_at: times.1,
    }
}

/// Reads a row; a row with an invalid value is not served at all.
fn read(row: apps::Model) -> Result<App, UnreadableRow> {
    let id = AppId(row.id);
    let unreadable = |column| UnreadableRow { id, column };
    // Empty credentials would let every caller in.
    for (column, value) in [("key", &row.key), ("secret", &row.secret.0)] {
        if value.is_empty() {
            return Err(unreadable(column));
        }
    }
    let settings = AppSettings::restore(|name| of_column(row.get(column(name))));
    Ok(App {
        id,
        settings: settings.map_err(unreadable)?,
        name: row.name,
        slug: Slug::parse(&row.slug).ok_or_else(|| unreadable("slug"))?,
        key: row.key,
        secret: row.secret.0.into(),
        inserted_at: row.inserted_at,
        updated_at: row.updated_at,
    })
}
