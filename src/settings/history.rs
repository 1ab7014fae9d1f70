//! What is retained of publications: the settings of the server, and what they mean for an app.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{Settings, kinds};
use crate::app::settings::AppSettings;

/// The suffix that makes the name of the history's file from that of an SQLite database, which names
/// its own further files in the same way.
const SUFFIX: &str = "-history";
/// The file beside no database.
const LONE_FILE: &str = "herald-history";

/// Retained publications.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Publications of each channel, and of `#general` of each scope, for apps that do not say; 0
    /// retains nothing.
    pub publications: usize,
    /// The most that an app may have of them.
    pub publications_max: usize,
    /// How long a publication is retained, for apps that do not say.
    pub age: Duration,
    /// The longest that an app may have.
    pub age_max: Duration,
    /// What one app retains.
    pub app_bytes_max: usize,
    /// What all apps retain.
    pub bytes_max: usize,
    /// Channels of one scope whose history is remembered.
    pub channels_max: usize,
    /// Publications that one join replays.
    pub replay_max: usize,
    /// Bytes that one join replays.
    pub replay_bytes_max: usize,
    /// Where a stop saves what is retained.
    #[serde(deserialize_with = "kinds::history_file")]
    pub file: HistoryFile,
}

/// Where a stop saves what is retained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryFile {
    /// Beside the database.
    Auto,
    /// Nowhere.
    Off,
    /// In this file.
    At(PathBuf),
}

impl Settings {
    /// The file in which a stop saves what is retained; `None` if nothing is saved. A relative path is
    /// relative to the working directory.
    pub fn history_file(&self) -> Option<PathBuf> {
        match &self.history.file {
            HistoryFile::Off => None,
            HistoryFile::At(path) => Some(path.clone()),
            HistoryFile::Auto if self.database.is_in_memory() => None,
            HistoryFile::Auto => {
                let beside = |path: &Path| {
                    let mut name = path.as_os_str().to_owned();
                    name.push(SUFFIX);
                    name.into()
                };
                Some(self.database.file().map_or_else(|| LONE_FILE.into(), |path| beside(&path)))
            }
        }
    }
}

/// How much is retained and replayed, as the broker uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistorySettings {
    /// Publications of each channel, and of `#general` of each scope, for apps that do not say.
    pub publications: usize,
    /// The most that an app may have of them.
    pub publications_max: usize,
    /// How long a publication is retained, for apps that do not say.
    pub age: Duration,
    /// The longest that an app may have.
    pub age_max: Duration,
    /// What one app retains, in bytes.
    pub app_bytes_max: usize,
    /// What all apps retain, in bytes.
    pub bytes_max: usize,
    /// Channels of one scope whose history is remembered.
    pub channels_max: usize,
    /// Publications that one join replays.
    pub replay_max: usize,
    /// Bytes that one join replays.
    pub replay_bytes_max: usize,
}

impl From<&History> for HistorySettings {
    fn from(history: &History) -> Self {
        Self {
            publications: history.publications,
            publications_max: history.publications_max,
            age: history.age,
            age_max: history.age_max,
            app_bytes_max: history.app_bytes_max,
            bytes_max: history.bytes_max,
            channels_max: history.channels_max,
            replay_max: history.replay_max,
            replay_bytes_max: history.replay_bytes_max,
        }
    }
}

/// What is retained of each channel of one app, and of `#general` of each of its scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppHistory {
    /// Publications; 0 retains nothing.
    pub publications: usize,
    /// How long a publication is retained.
    pub age: Duration,
}

impl AppHistory {
    /// Nothing is retained.
    pub const NONE: Self = Self { publications: 0, age: Duration::ZERO };
}

impl HistorySettings {
    /// What is retained for an app: what it asks for, or else the server's default, and never more
    /// than the server's maximum. [`AppHistory::NONE`] if the app is inactive, or if it or the server
    /// retains no publications or retains them for no time.
    pub fn of(&self, app: &AppSettings) -> AppHistory {
        let publications = self.publications.min(self.publications_max);
        let age = self.age.min(self.age_max);
        match app.active && publications > 0 && !age.is_zero() {
            true => AppHistory { publications, age },
            false => AppHistory::NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: HistorySettings = HistorySettings {
        publications: 100,
        publications_max: 1_000,
        age: Duration::from_secs(300),
        age_max: Duration::from_secs(86_400),
        app_bytes_max: 1,
        bytes_max: 1,
        channels_max: 1,
        replay_max: 1,
        replay_bytes_max: 1,
    };

    #[test]
    fn an_inactive_app_retains_nothing_and_neither_does_a_server_without_history() {
        let active = AppSettings::default();
        let inactive = AppSettings { active: false, ..active.clone() };
        let of = |publications, age_s| {
            Some(AppHistory { publications, age: Duration::from_secs(age_s) })
        };
        for (case, server, app, expected) in [
            ("an app that does not say", SERVER, &active, of(100, 300)),
            ("an inactive app", SERVER, &inactive, None),
            ("no default", HistorySettings { publications: 0, ..SERVER }, &active, None),
            (
                "off",
                HistorySettings { publications: 0, publications_max: 0, ..SERVER },
                &active,
                None,
            ),
            ("no time", HistorySettings { age: Duration::ZERO, ..SERVER }, &active, None),
        ] {
            assert_eq!(server.of(app), expected.unwrap_or(AppHistory::NONE), "{case}");
        }
    }
}
