//! The apps (tenants), their credentials, tokens and origins, and the rights that these give.
//!
//! The entry point of this room is [`AppDirectory`]: an immutable snapshot of every app that
//! handlers and sessions read without waiting. Only the [`registry`] actor writes it, through the
//! [`store`], which is the only user of SeaORM. Everything else here is pure and tested as tables.

pub mod audit;
pub mod change;
pub mod database;
pub mod fields;
pub mod key_pair;
pub mod origin;
pub mod pair_digests;
pub mod permission;
pub mod refusals;
pub mod registry;
mod secrets;
pub mod seed;
pub mod settings;
pub mod store;
pub mod subject;
#[cfg(test)]
pub(crate) mod testing;
pub mod token;
pub mod visitor;

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::metrics::apps::UNCOUNTED;
use key_pair::{LastUse, PreviousPair};
use pair_digests::PairDigests;
use secrets::SecretDigests;
use settings::AppSettings;

/// An app's primary key in the database; it outlives a change of slug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AppId(pub i32);

impl AppId {
    /// The reserved app, whose topics are the console's live feed. No database has this number.
    pub const CONSOLE: Self = Self(UNCOUNTED);
}

/// An app's public id: 1–63 of `[a-z0-9-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Slug(Arc<str>);

impl Slug {
    /// The most bytes a slug may have.
    pub const BYTES_MAX: usize = 63;

    /// The slug of the reserved app as text: no app can have it, because of the underscore.
    pub const CONSOLE: &str = "_console";

    /// The slug of the reserved app.
    pub fn console() -> Self {
        Self(Self::CONSOLE.into())
    }

    /// Parses a slug, `None` if it breaks the rule above.
    pub fn parse(raw: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let sized = (1..=Self::BYTES_MAX).contains(&raw.len());
        (sized && raw.bytes().all(allowed)).then(|| Self(raw.into()))
    }

    /// The slug as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Slug {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The clients that may publish from a browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientEvents {
    /// Clients whose token has a matching `publish` claim.
    #[default]
    Authorized,
    /// All clients on public topics; on other topics as with [`ClientEvents::Authorized`].
    All,
    /// No client.
    None,
}

impl ClientEvents {
    /// Parses the setting's name in lower case.
    pub fn parse(raw: &str) -> Option<Self> {
        match raw {
            "authorized" => Some(Self::Authorized),
            "all" => Some(Self::All),
            "none" => Some(Self::None),
            _ => None,
        }
    }

    /// The setting's name, as stored and as the admin API shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authorized => "authorized",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

/// A tenant: one web application with its own key, secret and rules.
#[derive(Debug, Clone)]
pub struct App {
    /// Primary key.
    pub id: AppId,
    /// Human name, unique.
    pub name: String,
    /// Public id, unique.
    pub slug: Slug,
    /// User name of the app's HTTP Basic auth.
    pub key: String,
    /// Password of the app's HTTP Basic auth, and the key that signs its tokens.
    pub secret: SecretString,
    /// The time at which this key and secret were last used.
    pub last_use: Arc<LastUse>,
    /// The key and secret before the last rotation, while they are valid, too.
    pub previous: Option<PreviousPair>,
    /// The digests of both pairs. An app that is not part of a snapshot has none, and neither has the reserved
    /// app, which has no credentials.
    pub digests: PairDigests,
    /// The settings.
    pub settings: AppSettings,
    /// The time at which the app was created.
    pub inserted_at: DateTime<Utc>,
    /// The time at which the app was last changed.
    pub updated_at: DateTime<Utc>,
}

/// All apps at one moment, active or not.
#[derive(Debug, Default)]
pub struct Apps {
    by_slug: HashMap<Slug, Arc<App>>,
    by_id: HashMap<AppId, Arc<App>>,
    /// The apps by their current keys, and by their previous ones while these are valid.
    by_key: HashMap<String, Arc<App>>,
    secrets: SecretDigests,
    /// The reserved app: it is found like any other app, and listed nowhere.
    reserved: Option<Arc<App>>,
}

impl Apps {
    /// Finds an app, active or not, by its slug.
    pub fn by_slug(&self, slug: &str) -> Option<&Arc<App>> {
        self.by_slug
            .get(slug)
            .or_else(|| self.reserved.as_ref().filter(|reserved| reserved.slug.as_str() == slug))
    }

    /// Finds an app, active or not, by its id.
    pub fn by_id(&self, id: AppId) -> Option<&Arc<App>> {
        self.by_id.get(&id).or_else(|| self.reserved.as_ref().filter(|reserved| reserved.id == id))
    }

    /// Finds an app, active or not, by its current or its previous key. The reserved app is not found.
    pub fn by_key(&self, key: &str) -> Option<&Arc<App>> {
        self.by_key.get(key)
    }

    /// Returns whether some active app has this secret. The time that the look-up takes reveals nothing of
    /// any secret.
    pub fn have_secret(&self, given: &[u8]) -> bool {
        self.secrets.contain(given)
    }

    /// All apps, in no particular order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<App>> {
        self.by_id.values()
    }
}

impl FromIterator<App> for Apps {
    fn from_iter<T: IntoIterator<Item = App>>(apps: T) -> Self {
        let mut all = Self::default();
        for app in apps {
            let app = Arc::new(App { digests: PairDigests::of(&app), ..app });
            all.secrets.add(&app);
            all.by_slug.insert(app.slug.clone(), app.clone());
            if let Some(previous) = &app.previous {
                // A current key wins over a previous one, if a row that was written by hand repeats
                // it.
                all.by_key.entry(previous.key.clone()).or_insert_with(|| app.clone());
            }
            all.by_key.insert(app.key.clone(), app.clone());
            all.by_id.insert(app.id, app);
        }
        all
    }
}

/// The current snapshot of all apps: read anywhere without waiting, replaced by the registry.
#[derive(Debug, Clone, Default)]
pub struct AppDirectory(Arc<ArcSwap<Apps>>);

impl AppDirectory {
    /// The apps as of now. Load the snapshot once per decision, so that the decision rests on one
    /// state.
    pub fn load(&self) -> arc_swap::Guard<Arc<Apps>> {
        self.0.load()
    }

    /// Replaces the snapshot; the reserved app stays.
    pub fn replace(&self, mut apps: Apps) {
        apps.reserved = self.load().reserved.clone();
        self.0.store(Arc::new(apps));
    }

    /// Adds the reserved app. Call it before anything else writes.
    pub fn reserve(&self, app: App) {
        let apps = self.load().iter().map(|app| App::clone(app)).collect();
        self.0.store(Arc::new(Apps { reserved: Some(Arc::new(app)), ..apps }));
    }
}
