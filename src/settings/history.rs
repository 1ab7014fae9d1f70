//! The settings of the history, and the retention that they give an app.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{Settings, SettingsError, kinds};
use crate::app::settings::AppSettings;

/// The suffix of the history's file, which is appended to the name of an SQLite database. SQLite names its own
/// further files in the same way.
const SUFFIX: &str = "-history";
/// The name of the history's file if the database is not a file.
const LONE_FILE: &str = "herald-history";

/// The section `history`: the bounds of retention and replay.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistorySettings {
    /// The most publications that each channel, and `#general` of each scope, retains, for apps
    /// without a setting of their own; 0 retains nothing.
    pub publications: usize,
    /// The most publications that an app may set.
    pub publications_max: usize,
    /// The time for which a publication is retained, for apps without a setting of their own.
    pub age: Duration,
    /// The longest time that an app may set.
    pub age_max: Duration,
    /// The most bytes that one app retains.
    pub app_bytes_max: usize,
    /// The most bytes that all apps retain.
    pub bytes_max: usize,
    /// The most channels of one scope whose history is remembered.
    pub channels_max: usize,
    /// The most publications that one join replays.
    pub replay_max: usize,
    /// The most bytes that one join replays.
    pub replay_bytes_max: usize,
    /// The file in which a stop saves the retained publications.
    #[serde(deserialize_with = "kinds::history_file")]
    pub file: HistoryFile,
}

/// The file in which a stop saves the retained publications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryFile {
    /// A file next to the database.
    Auto,
    /// No file: nothing is saved.
    Off,
    /// This file.
    At(PathBuf),
}

impl Settings {
    /// Checks a file that was set: its path has no folder, link or device, because these are never used, and its
    /// folder exists, or is that of an SQLite database, which the first start makes. A folder that is not writable
    /// stops no start, because a disk that becomes read-only must not keep a server from serving, and neither does
    /// the content of the file.
    ///
    /// # Errors
    /// [`SettingsError`] names `history.file`.
    pub fn check_history_file(&self) -> Result<(), SettingsError> {
        let HistoryFile::At(path) = &self.history.file else { return Ok(()) };
        if let Some(found) = fs::symlink_metadata(path).ok().filter(|found| !found.is_file()) {
            let what = match found.is_dir() {
                true => "is a folder: name a file in it",
                false => "is not a regular file",
            };
            let fault = format!("{:?} {what}", path.display());
            return Err(SettingsError::new("history.file", fault));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let database = self.database.file();
        let of_database = database.as_deref().and_then(Path::parent);
        match folder.filter(|folder| !folder.is_dir() && Some(*folder) != of_database) {
            None => Ok(()),
            Some(folder) => {
                let fault = format!("there is no folder {:?}: make it first", folder.display());
                Err(SettingsError::new("history.file", fault))
            }
        }
    }

    /// The file in which a stop saves the retained publications; `None` if nothing is saved. A
    /// relative path is relative to the working directory.
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

/// The retention of each channel of one app, and of `#general` of each of its scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppHistory {
    /// The most publications; 0 retains nothing.
    pub publications: usize,
    /// The time for which a publication is retained.
    pub age: Duration,
}

impl AppHistory {
    /// Nothing is retained.
    pub const NONE: Self = Self { publications: 0, age: Duration::ZERO };
}

impl HistorySettings {
    /// The retention of an app: the app's own setting, or else the server's default, and never more
    /// than the server's maximum. [`AppHistory::NONE`] if the app is inactive, or if it or the
    /// server retains no publications or retains them for no time.
    pub fn of(&self, app: &AppSettings) -> AppHistory {
        let asked = app.history_publications.map(|number| number.get() as usize);
        let publications = asked.unwrap_or(self.publications).min(self.publications_max);
        let asked = app.history_seconds.map(|number| Duration::from_secs(number.get().into()));
        let age = asked.unwrap_or(self.age).min(self.age_max);
        match app.active && publications > 0 && !age.is_zero() {
            true => AppHistory { publications, age },
            false => AppHistory::NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::settings::UpTo;

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
        file: HistoryFile::Off,
    };

    /// A server without a default for publications.
    const OFF_UNLESS_ASKED: HistorySettings = HistorySettings { publications: 0, ..SERVER };
    /// A server that retains nothing.
    const OFF: HistorySettings = HistorySettings { publications_max: 0, ..OFF_UNLESS_ASKED };

    #[test]
    fn an_app_has_what_it_asks_for_within_the_servers_maximum() {
        let of = |publications, age_s| AppHistory { publications, age: Duration::from_secs(age_s) };
        for (case, server, asked, expected) in [
            ("nothing asked", SERVER, (None, None), of(100, 300)),
            ("less", SERVER, (Some(1), Some(1)), of(1, 1)),
            ("more", SERVER, (Some(500), Some(3_600)), of(500, 3_600)),
            ("one of them", SERVER, (Some(500), None), of(500, 300)),
            ("the other", SERVER, (None, Some(3_600)), of(100, 3_600)),
            ("the maximum", SERVER, (Some(1_000), Some(86_400)), of(1_000, 86_400)),
            ("beyond it", SERVER, (Some(1_001), Some(86_401)), of(1_000, 86_400)),
            ("no publications", SERVER, (Some(0), Some(3_600)), AppHistory::NONE),
            ("for no time", SERVER, (Some(500), Some(0)), AppHistory::NONE),
            ("no default", OFF_UNLESS_ASKED, (None, Some(60)), AppHistory::NONE),
            ("in spite of no default", OFF_UNLESS_ASKED, (Some(7), None), of(7, 300)),
            ("a server without history", OFF, (Some(500), Some(3_600)), AppHistory::NONE),
        ] {
            let app = AppSettings {
                history_publications: asked.0.and_then(UpTo::new),
                history_seconds: asked.1.and_then(UpTo::new),
                ..AppSettings::default()
            };
            assert_eq!(server.of(&app), expected, "{case}");
            let inactive = AppSettings { active: false, ..app };
            assert_eq!(server.of(&inactive), AppHistory::NONE, "{case}, inactive");
        }
    }
}
