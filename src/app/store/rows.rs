//! Rows of the table of apps.

use chrono::{DateTime, Utc};
use herald_entity::apps;
use sea_orm::{ActiveModelTrait, ModelTrait, Set, Unchanged};
use secrecy::{ExposeSecret, SecretString};

use super::now;
use crate::app::{
    App, AppId, Slug,
    fields::AppValues,
    key_pair::{LastUse, PreviousPair},
    pair_digests::PairDigests,
    settings::AppSettings,
};

/// A row that is not a valid app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableRow {
    /// Its primary key.
    pub id: AppId,
    /// The column whose value is not valid.
    pub column: &'static str,
}

pub(super) fn stored_secret(secret: &SecretString) -> apps::Secret {
    apps::Secret(secret.expose_secret().to_owned())
}

/// The column of a setting; both have the same name.
pub(super) fn column(setting: &str) -> apps::Column {
    setting.parse().expect("every setting has a column: a test reads them all")
}

/// The value of a boolean, a text or a nullable number column.
pub(super) fn to_column(stored: serde_json::Value) -> sea_orm::Value {
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

pub(super) fn changed_columns(
    app: &App,
    values: &AppValues,
    now: DateTime<Utc>,
) -> apps::ActiveModel {
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
    let is_secret_new = values.secret.expose_secret() != app.secret.expose_secret();
    if is_secret_new {
        row.secret = Set(stored_secret(&values.secret));
    }
    if is_secret_new || values.key != app.key {
        row.key_last_used_at = Set(None);
    }
    for (given, current) in values.settings.stored().into_iter().zip(app.settings.stored()) {
        if given != current {
            row.set(column(given.0), to_column(given.1));
        }
    }
    row.updated_at = Set(now);
    row
}

/// Reads a row; a row with an invalid value is not served at all.
pub(super) fn read(row: apps::Model) -> Result<App, UnreadableRow> {
    let id = AppId(row.id);
    let unreadable = |column| UnreadableRow { id, column };
    // Empty credentials would authenticate every caller.
    for (column, value) in [("key", &row.key), ("secret", &row.secret.0)] {
        if value.is_empty() {
            return Err(unreadable(column));
        }
    }
    let settings = AppSettings::restore(|name| of_column(row.get(column(name))));
    let previous = previous_pair(&row);
    Ok(App {
        id,
        settings: settings.map_err(unreadable)?,
        name: row.name,
        slug: Slug::parse(&row.slug).ok_or_else(|| unreadable("slug"))?,
        key: row.key,
        secret: row.secret.0.into(),
        last_use: LastUse::of_database(row.key_last_used_at),
        previous,
        digests: PairDigests::default(),
        inserted_at: row.inserted_at,
        updated_at: row.updated_at,
    })
}

/// The previous pair of a row; `None` unless it is complete and valid. An empty secret counts as invalid,
/// because it would authenticate every caller.
fn previous_pair(row: &apps::Model) -> Option<PreviousPair> {
    let (key, secret) = (row.previous_key.clone()?, row.previous_secret.clone()?.0);
    let pair = PreviousPair {
        key,
        secret: secret.into(),
        expires_at: row.previous_key_expires_at?,
        last_use: LastUse::of_database(row.previous_key_last_used_at),
    };
    let is_valid = !pair.key.is_empty() && !pair.secret.expose_secret().is_empty();
    Some(pair).filter(|pair| is_valid && !pair.is_over(now()))
}
