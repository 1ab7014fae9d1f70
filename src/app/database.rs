//! The address of the database: its URL, checked and named without its password.

use std::{path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;
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
    /// The most connections in the pool.
    pub connections_max: u32,
    /// The time for which the database is retried at start.
    pub connect_retry: Duration,
    /// The time that one query may take.
    pub query_timeout: Duration,
    /// Whether pending migrations are applied at the start.
    pub migrate: bool,
    /// Whether the development app `test-app` is created at the start: see [`seed`](super::seed).
    pub seed: bool,
}

impl Database {
    /// The name of the database in messages: its URL without password and parameters, and the
    /// absolute path of an SQLite file, because a relative path means a different database in a
    /// different folder.
    pub fn name(&self) -> String {
        if self.is_in_memory() {
            return "sqlite::memory:".into();
        }
        let Some(file) = self.file() else {
            let shown = shown_url(self.url.expose_secret()).unwrap_or_else(|| "a database".into());
            return shown.split('?').next().unwrap_or_default().to_owned();
        };
        let path = std::path::absolute(&file).unwrap_or(file);
        format!("sqlite://{}", path.display())
    }

    /// The file of an SQLite database; `None` for one in memory, and for PostgreSQL.
    pub fn file(&self) -> Option<PathBuf> {
        let file = sqlite_file(self.url.expose_secret()).filter(|_| !self.is_in_memory())?;
        // As the driver does, so that a name may hold `?`.
        Some(percent_decode_str(file).decode_utf8_lossy().into_owned().into())
    }

    /// Returns whether this is an SQLite database in memory.
    pub fn is_in_memory(&self) -> bool {
        let url = self.url.expose_secret();
        let is_said = url.contains(":memory:") || url.contains("mode=memory");
        sqlite_file(url).is_some() && is_said
    }
}

/// The file that an SQLite URL names; `None` for any other URL.
fn sqlite_file(url: &str) -> Option<&str> {
    let file = url.strip_prefix("sqlite:")?;
    let file = file.strip_prefix("//").unwrap_or(file);
    file.split('?').next()
}

/// The URL of a host with one of these schemes, without its password; `None` for any other text.
pub fn masked(raw: &str, schemes: [&str; 2]) -> Option<Url> {
    // The parser would remove white space and control characters without an error.
    if raw.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let mut url = Url::parse(raw).ok()?;
    if !schemes.contains(&url.scheme()) || !url.has_host() {
        return None;
    }
    if url.password().is_some() {
        url.set_password(Some(MASK)).ok()?;
    }
    Some(url)
}

/// A database URL without its password; `None` if Herald cannot use the database.
pub fn shown_url(raw: &str) -> Option<String> {
    if let Some(file) = sqlite_file(raw) {
        return (!file.is_empty()).then(|| raw.to_owned());
    }
    let mut url = masked(raw, ["postgres", "postgresql"])?;
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
            ("sqlite:///var/my%20lib/herald.db", "sqlite:///var/my lib/herald.db"),
            ("sqlite::memory:", "sqlite::memory:"),
            ("sqlite://herald.db?mode=memory", "sqlite::memory:"),
            ("postgres://herald:hush@db/herald", "postgres://herald:********@db/herald"),
            ("postgres://db:5433/herald?password=hush", "postgres://db:5433/herald"),
            ("mysql://herald:hush@db/herald", "a database"),
        ] {
            assert_eq!(database(url).name(), expected, "{url}");
        }
    }

    #[test]
    fn only_an_sqlite_database_on_disk_has_a_file() {
        for (url, file, is_in_memory) in [
            ("sqlite://data/herald.db", Some("data/herald.db"), false),
            ("sqlite:/var/a%3Fb.db?mode=rwc", Some("/var/a?b.db"), false),
            ("sqlite::memory:", None, true),
            ("sqlite://x?mode=memory&cache=shared", None, true),
            ("postgres://db/herald?mode=memory", None, false),
        ] {
            let database = database(url);
            let found = (database.file(), database.is_in_memory());
            assert_eq!(found, (file.map(PathBuf::from), is_in_memory), "{url}");
        }
    }

    fn database(url: &str) -> Database {
        Database {
            url: url.into(),
            connections_max: 1,
            connect_retry: Duration::ZERO,
            query_timeout: Duration::ZERO,
            migrate: false,
            seed: false,
        }
    }
}
