//! The address of the database: its URL, checked and named without its password.

use std::{path::Path, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

/// The replacement for a password.
const MASK: &str = "********";

/// The address of the database, and the time limits for using it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `sqlite://…` or `postgres://…`; holds a password.
    pub url: SecretString,
    /// Connections in the pool.
    pub connections_max: u32,
    /// How long the database is retried at start.
    pub connect_retry: Duration,
    /// How long one query may take.
    pub query_timeout: Duration,
    /// Apply pending migrations at start.
    pub migrate: bool,
    /// Create the articles' `test-app` at start.
    pub seed: bool,
}

impl Database {
    /// The name of the database in messages: its URL without password and parameters, and the
    /// absolute path of an SQLite file, because a relative path means a different database in a
    /// different folder.
    pub fn name(&self) -> String {
        let url = self.url.expose_secret();
        let Some(file) = sqlite_file(url) else {
            let shown = shown_url(url).unwrap_or_else(|| "a database".into());
            return shown.split('?').next().unwrap_or_default().to_owned();
        };
        if file == ":memory:" {
            return "sqlite::memory:".into();
        }
        let path = std::path::absolute(file).unwrap_or_else(|_| Path::new(file).to_owned());
        format!("sqlite://{}", path.display())
    }
}

/// The file that an SQLite URL names; `None` for any other URL.
fn sqlite_file(url: &str) -> Option<&str> {
    let file = url.strip_prefix("sqlite:")?;
    let file = file.strip_prefix("//").unwrap_or(file);
    file.split('?').next()
}

/// A database URL without its password; `None` if Herald cannot use the database.
pub fn shown_url(raw: &str) -> Option<String> {
    if let Some(file) = sqlite_file(raw) {
        return (!file.is_empty()).then(|| raw.to_owned());
    }
    // The parser would drop them silently.
    if raw.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let mut url = Url::parse(raw).ok()?;
    let is_postgres = matches!(url.scheme(), "postgres" | "postgresql") && url.has_host();
    if !is_postgres {
        return None;
    }
    if url.password().is_some() {
        url.set_password(Some(MASK)).ok()?;
    }
    if url.query().is_some() {
        // A parameter may hold a password too.
        url.set_query(Some(MASK));
    }
    Some(url.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_without_its_password_and_by_its_whole_path() {
        let folder = std::env::current_dir().expect("a folder").display().to_string();
        let here = format!("sqlite://{folder}/data/herald.db");
        for (url, expected) in [
            ("sqlite://data/herald.db", here.as_str()),
            ("sqlite:data/herald.db?mode=rwc", &here),
            ("sqlite:///var/lib/herald.db", "sqlite:///var/lib/herald.db"),
            ("sqlite::memory:", "sqlite::memory:"),
            ("postgres://herald:hush@db/herald", "postgres://herald:********@db/herald"),
            ("postgres://db:5433/herald?password=hush", "postgres://db:5433/herald"),
            ("mysql://herald:hush@db/herald", "a database"),
        ] {
            let database = Database {
                url: url.into(),
                connections_max: 1,
                connect_retry: Duration::ZERO,
                query_timeout: Duration::ZERO,
                migrate: false,
                seed: false,
            };
            assert_eq!(database.name(), expected, "{url}");
        }
    }
}
