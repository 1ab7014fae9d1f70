//! The errors of the store. They contain no part of the database's URL, which may hold a password.

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};

/// The reason why the database did not do a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database is unreachable, too slow, or refused the request. A retry may succeed. A write may still have
    /// happened.
    #[error("database is unavailable: {0}")]
    Unavailable(String),
    /// Another app has the value of this field already.
    #[error("{} has already been taken", .0.as_str())]
    Taken(UniqueField),
    /// The database cannot be used in its present configuration. A retry does not help.
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
    pub(super) fn of(self, database: &str) -> Self {
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
    let names = |column: &str| {
        text.contains(&format!("apps.{column}")) || text.contains(&format!("apps_{column}_unique"))
    };
    let columns = [
        ("slug", UniqueField::Slug),
        ("key", UniqueField::Key),
        ("previous_key", UniqueField::Key),
    ];
    let named = columns.into_iter().find(|(column, _)| names(column));
    named.map_or(UniqueField::Name, |(_, field)| field)
}

/// Returns whether the database may or may not have carried out the request.
pub(super) fn is_unheard(error: &DbErr) -> bool {
    !matches!(driver_error(error), Some(sqlx::Error::Database(_)))
}

/// Returns whether SQLite refused because another connection writes.
pub(super) fn is_busy(error: &DbErr) -> bool {
    driver_error(error).is_some_and(is_driver_busy)
}

/// Returns whether SQLite refused because another connection writes.
pub(super) fn is_driver_busy(error: &sqlx::Error) -> bool {
    /// `SQLITE_BUSY`, the last byte of every code of its kind.
    const BUSY: i32 = 5;
    let sqlx::Error::Database(error) = error else { return false };
    let is_of_sqlite = error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some();
    let code = error.code().and_then(|code| code.parse::<i32>().ok());
    is_of_sqlite && code.is_some_and(|code| code & 0xff == BUSY)
}

/// The error of the driver, if there is one.
fn driver_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

/// The reason for an error. The database's own text is used where it cannot contain a secret.
pub(super) fn reason(error: &DbErr) -> String {
    if let Some(error) = driver_error(error) {
        return driver_reason(error);
    }
    match error {
        DbErr::ConnectionAcquire(_) => "no connection could be had in time".into(),
        DbErr::Migration(reason) => reason.clone(),
        other => other.to_string(),
    }
}

pub(super) fn driver_reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        // These messages may quote the URL.
        sqlx::Error::Configuration(_) => "its URL cannot be understood".into(),
        other => other.to_string(),
    }
}
