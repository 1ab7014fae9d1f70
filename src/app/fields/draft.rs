//! Drafts: the app that a request would make, and the values that may be stored.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{AppFields, BLANK, Credential, Faults};
use crate::app::{App, Slug, settings::AppSettings};

/// The values of an app that may be stored.
#[derive(Debug, Clone)]
pub struct AppValues {
    /// Human name.
    pub name: String,
    /// Public id.
    pub slug: Slug,
    /// User name of Basic auth.
    pub key: String,
    /// Password of Basic auth, and the key that signs tokens.
    pub secret: SecretString,
    /// The settings.
    pub settings: AppSettings,
}

impl AppValues {
    /// Returns whether `app` already has these values.
    pub fn are_those_of(&self, app: &App) -> bool {
        self.differences(app).is_empty()
    }

    /// The names of the fields in which `app` has other values.
    pub fn differences(&self, app: &App) -> Vec<&'static str> {
        let own = [
            ("name", self.name != app.name),
            ("slug", self.slug != app.slug),
            ("key", self.key != app.key),
            ("secret", self.secret.expose_secret() != app.secret.expose_secret()),
        ];
        let own = own.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name);
        own.chain(self.settings.differences(&app.settings)).collect()
    }

    /// The names of the fields that a new app with these values sets: all but the settings that have
    /// their defaults.
    pub fn set_by_creation(&self) -> Vec<&'static str> {
        let own = ["name", "slug", "key", "secret"];
        own.into_iter().chain(self.settings.differences(&AppSettings::default())).collect()
    }
}

impl From<&App> for AppValues {
    fn from(app: &App) -> Self {
        Self {
            name: app.name.clone(),
            slug: app.slug.clone(),
            key: app.key.clone(),
            secret: app.secret.clone(),
            settings: app.settings.clone(),
        }
    }
}

/// An app as it would become, with all faults that are found without the database.
#[derive(Debug)]
pub struct Draft {
    /// The name, unless it is faulty.
    pub name: Option<String>,
    /// The slug, unless it or the name it is made from is faulty.
    pub slug: Option<Slug>,
    /// The key; if the key in the request is faulty, a random one or the previous one.
    pub key: String,
    /// The faults found so far.
    pub faults: Faults,
    secret: SecretString,
    settings: AppSettings,
}

impl Draft {
    /// Drafts a new app: an absent field gets its default, and an empty slug, key or secret is
    /// generated.
    pub fn of_new(fields: AppFields) -> Self {
        let mut faults = fields.faults;
        let settings = set(AppSettings::default(), &fields.others, &mut faults);
        if fields.name.is_none() && !faults.has("name") {
            faults.add("name", BLANK);
        }
        let slug = match fields.slug {
            Some(slug) => Some(slug),
            // One fault of the slug is enough; a faulty slug is not replaced by a guess.
            None if faults.has("slug") => None,
            None => slug_of(fields.name.as_deref(), &mut faults),
        };
        Self {
            name: fields.name,
            slug,
            faults,
            key: chosen(fields.key).unwrap_or_else(random),
            secret: chosen(fields.secret).unwrap_or_else(|| random().into()),
            settings,
        }
    }

    /// Drafts a change of `app`: an absent field keeps its value. The slug follows the name, and
    /// cannot be set otherwise.
    pub fn of_change(fields: AppFields, app: &App) -> Self {
        let mut faults = fields.faults;
        let settings = set(app.settings.clone(), &fields.others, &mut faults);
        // A slug can be set only on creation: here it is ignored, and so are its faults.
        faults.forgive("slug");
        let is_name_faulty = faults.has("name");
        let name = fields.name.or_else(|| (!is_name_faulty).then(|| app.name.clone()));
        let slug = match &name {
            Some(name) if *name == app.name => Some(app.slug.clone()),
            name => slug_of(name.as_deref(), &mut faults),
        };
        Self {
            name,
            slug,
            faults,
            key: renewed(fields.key, &app.key, random),
            secret: renewed(fields.secret, &app.secret, || random().into()),
            settings,
        }
    }

    /// Turns a draft without faults into values.
    ///
    /// # Errors
    /// All its faults.
    pub fn finish(self) -> Result<AppValues, Faults> {
        match (self.faults.is_empty(), self.name, self.slug) {
            (true, Some(name), Some(slug)) => Ok(AppValues {
                name,
                slug,
                key: self.key,
                secret: self.secret,
                settings: self.settings,
            }),
            _ => Err(self.faults),
        }
    }
}

fn set(mut settings: AppSettings, given: &Map<String, Value>, faults: &mut Faults) -> AppSettings {
    given.iter().for_each(|(field, value)| settings.set(field, value, faults));
    settings
}

/// Makes a slug: lower case, ASCII, hyphens, cut to length. A name that leaves no slug is faulty.
fn slug_of(name: Option<&str>, faults: &mut Faults) -> Option<Slug> {
    let made = slug::slugify(name?);
    let cut = made.get(..Slug::BYTES_MAX).unwrap_or(&made);
    let slug = Slug::parse(cut.trim_end_matches('-'));
    if slug.is_none() {
        faults.add("name", "must contain letters or digits to make a slug from");
    }
    slug
}

/// Makes a random key or secret.
pub(in crate::app) fn random() -> String {
    Uuid::new_v4().to_string()
}

fn chosen<T>(credential: Option<Credential<T>>) -> Option<T> {
    match credential {
        Some(Credential::Chosen(value)) => Some(value),
        Some(Credential::Anew) | None => None,
    }
}

fn renewed<T: Clone>(
    credential: Option<Credential<T>>,
    current: &T,
    make: impl FnOnce() -> T,
) -> T {
    match credential {
        Some(Credential::Chosen(value)) => value,
        Some(Credential::Anew) => make(),
        None => current.clone(),
    }
}
