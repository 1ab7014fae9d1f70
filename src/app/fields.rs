//! An app's fields as they arrive from outside, and all faults in them.
//!
//! [`AppFields`] holds the fields of a request, a [`Draft`] the app that would result, and
//! [`AppValues`] the values that may be stored. Forms send strings for everything, JSON sends
//! types: both are read here. Pure: between draft and values, `change` checks by the database that names
//! are free.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{App, Slug, settings::AppSettings};

/// The fewest characters of a name.
const NAME_CHARS_MIN: usize = 5;
/// The fewest characters of a secret that the caller chose.
const SECRET_CHARS_MIN: usize = 16;
/// The most characters of a name or a secret.
const CHARS_MAX: usize = 255;
/// The most characters of a key.
const KEY_CHARS_MAX: usize = 64;

pub(super) const BLANK: &str = "can't be blank";
pub(super) const INVALID: &str = "is invalid";
/// The fault of a field that an app may not set itself.
const NOT_BY_APP: &str = "can be changed by the administrator only";
const CONTROL_CHARACTERS: &str = "must not contain control characters";
/// The fault of a name, slug or key that another app has.
pub(super) const TAKEN: &str = "has already been taken";

/// All faults of an input, by field: `{"name":["can't be blank"]}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Faults(BTreeMap<&'static str, Vec<Cow<'static, str>>>);

impl Faults {
    /// Records one fault of `field`.
    pub fn add(&mut self, field: &'static str, fault: impl Into<Cow<'static, str>>) {
        self.0.entry(field).or_default().push(fault.into());
    }

    /// The value of `field`, unless it is faulty: then its faults are recorded.
    pub(super) fn keep<T>(
        &mut self,
        field: &'static str,
        read: Result<T, FieldFaults>,
    ) -> Option<T> {
        read.map_err(|found| self.0.entry(field).or_default().extend(found)).ok()
    }

    /// Whether there are no faults.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `field` has a fault.
    pub fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    /// Each faulty field with its faults, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[Cow<'static, str>])> {
        self.0.iter().map(|(field, faults)| (*field, faults.as_slice()))
    }
}

impl fmt::Display for Faults {
    /// One line: `name can't be blank; key has already been taken`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> =
            self.iter().map(|(field, faults)| format!("{field} {}", faults.join(", "))).collect();
        f.write_str(&all.join("; "))
    }
}

/// The party that writes the fields of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldWriter {
    /// The operator, through the admin API or the command line.
    Operator,
    /// The web application itself.
    App,
}

/// A field that a request can set, and whether the web application itself may set it.
struct Writable {
    name: &'static str,
    by_app: bool,
}

/// All fields that a request can set.
const WRITABLE: &[Writable] = &[
    Writable { name: "name", by_app: false },
    Writable { name: "slug", by_app: false },
    Writable { name: "key", by_app: true },
    Writable { name: "secret", by_app: true },
    Writable { name: "active", by_app: false },
    Writable { name: "allowed_origins", by_app: true },
    Writable { name: "client_events", by_app: true },
    Writable { name: "shared_tokens", by_app: true },
    Writable { name: "history_publications", by_app: true },
    Writable { name: "history_seconds", by_app: true },
    Writable { name: "pusher", by_app: true },
    Writable { name: "subscription_count", by_app: true },
    Writable { name: "authorized_only", by_app: true },
];

/// A key or secret in a request.
#[derive(Debug, Clone)]
enum Credential<T> {
    /// The field was sent empty, so that a new one is generated.
    Anew,
    /// The caller chose this one.
    Chosen(T),
}

/// The fields of a request, each either absent, read, or faulty.
#[derive(Debug, Clone, Default)]
pub struct AppFields {
    name: Option<String>,
    slug: Option<Slug>,
    key: Option<Credential<String>>,
    secret: Option<Credential<SecretString>>,
    /// All other members, unread: settings, and members that are ignored.
    others: Map<String, Value>,
    faults: Faults,
}

impl AppFields {
    /// Reads the `app` object of a request; members that cannot be written are ignored.
    ///
    /// Never fails: faults are kept until all of them are known.
    pub fn read(given: &Map<String, Value>) -> Self {
        Self::read_by(FieldWriter::Operator, given)
    }

    /// Like [`AppFields::read`]; a field that this party may not set is faulty.
    pub fn read_by(writer: FieldWriter, given: &Map<String, Value>) -> Self {
        let mut fields = Self::default();
        for (field, value) in given {
            let forbidden = WRITABLE.iter().find(|known| known.name == field && !known.by_app);
            match forbidden.filter(|_| writer == FieldWriter::App) {
                Some(forbidden) => fields.faults.add(forbidden.name, NOT_BY_APP),
                None => fields.read_field(field, value),
            }
        }
        fields
    }

    /// Whether the request sets the secret, or has a new one made.
    pub fn have_secret(&self) -> bool {
        self.secret.is_some()
    }

    fn read_field(&mut self, field: &str, value: &Value) {
        let faults = &mut self.faults;
        match field {
            "name" => self.name = faults.keep("name", read_name(value)),
            "slug" => self.slug = faults.keep("slug", read_slug(value)).flatten(),
            "key" => self.key = faults.keep("key", read_key(value)),
            "secret" => self.secret = faults.keep("secret", read_secret(value)),
            other => drop(self.others.insert(other.to_owned(), value.clone())),
        }
    }
}

/// The faults of one field.
pub(super) type FieldFaults = Vec<Cow<'static, str>>;

/// A string; null counts as an empty string, because a form has no other way to express it.
pub(super) fn read_text(value: &Value) -> Result<&str, FieldFaults> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(""),
        _ => Err(vec![INVALID.into()]),
    }
}

fn read_name(value: &Value) -> Result<String, FieldFaults> {
    let name = read_text(value)?;
    if name.trim().is_empty() {
        return Err(vec![BLANK.into()]);
    }
    let mut faults = length_faults(name, NAME_CHARS_MIN);
    if name.chars().any(char::is_control) {
        faults.push(CONTROL_CHARACTERS.into());
    }
    if faults.is_empty() { Ok(name.to_owned()) } else { Err(faults) }
}

fn length_faults(text: &str, chars_min: usize) -> FieldFaults {
    match text.chars().count() {
        count if count < chars_min => {
            vec![format!("should be at least {chars_min} character(s)").into()]
        }
        count if count > CHARS_MAX => {
            vec![format!("should be at most {CHARS_MAX} character(s)").into()]
        }
        _ => Vec::new(),
    }
}

/// An empty slug counts as absent: the slug is made from the name.
fn read_slug(value: &Value) -> Result<Option<Slug>, FieldFaults> {
    match read_text(value)? {
        "" => Ok(None),
        raw => match Slug::parse(raw) {
            Some(slug) => Ok(Some(slug)),
            None => Err(vec!["must be 1 to 63 of a-z, 0-9 and -".into()]),
        },
    }
}

/// The key is the user name of Basic auth, which ends at the first colon, and a segment of the path that
/// Pusher's clients dial: so it consists of the characters that no URL escapes.
fn read_key(value: &Value) -> Result<Credential<String>, FieldFaults> {
    let key = read_text(value)?;
    if key.is_empty() {
        return Ok(Credential::Anew);
    }
    let is_unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-');
    match key.len() <= KEY_CHARS_MAX && key.bytes().all(is_unreserved) {
        true => Ok(Credential::Chosen(key.to_owned())),
        false => Err(vec!["must be 1 to 64 of A-Z, a-z, 0-9, ., _, ~ and -".into()]),
    }
}

fn read_secret(value: &Value) -> Result<Credential<SecretString>, FieldFaults> {
    let secret = read_text(value)?;
    if secret.is_empty() {
        return Ok(Credential::Anew);
    }
    let mut faults = length_faults(secret, SECRET_CHARS_MIN);
    if secret.chars().any(char::is_control) {
        faults.push(CONTROL_CHARACTERS.into());
    }
    if faults.is_empty() { Ok(Credential::Chosen(secret.into())) } else { Err(faults) }
}

/// The values of an app that may be stored.
#[derive(Debug, Clone)]
pub struct AppValues {
    /// Human name.
    pub name: String,
    /// Public id.
    pub slug: Slug,
    /// User name of Basic auth.
    pub key: String,
    /// Its password, and the key of tokens.
    pub secret: SecretString,
    /// The settings.
    pub settings: AppSettings,
}

impl AppValues {
    /// Whether `app` already has these values.
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
        faults.0.remove("slug");
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
pub(super) fn random() -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::Utc;
    use serde_json::json;

    use crate::app::{AppId, ClientEvents, origin::AllowedOrigins, settings::UpTo};

    fn fields(given: Value) -> AppFields {
        AppFields::read(given.as_object().expect("an object"))
    }

    fn faults_of_new(given: Value) -> Value {
        let faults = Draft::of_new(fields(given)).finish().err().unwrap_or_default();
        serde_json::to_value(faults).expect("faults are JSON")
    }

    fn new(given: Value) -> AppValues {
        Draft::of_new(fields(given)).finish().expect("no faults")
    }

    fn stored() -> App {
        App {
            id: AppId(1),
            name: "Foo App".into(),
            slug: Slug::parse("chosen-slug").expect("a slug"),
            key: "the-key".into(),
            secret: "a secret of some length".into(),
            last_use: Default::default(),
            previous: None,
            settings: AppSettings {
                active: false,
                allowed_origins: AllowedOrigins::parse(vec!["//a.example".into()])
                    .expect("origins"),
                client_events: ClientEvents::All,
                ..AppSettings::default()
            },
            inserted_at: Utc::now(),
            updated_at: Utc::now(),
        }
    }

    fn change(given: Value) -> Result<AppValues, Faults> {
        Draft::of_change(fields(given), &stored()).finish()
    }

    #[test]
    fn a_name_alone_makes_a_whole_app() {
        let values = new(json!({ "name": "foo-app" }));
        assert_eq!((values.name.as_str(), values.slug.as_str()), ("foo-app", "foo-app"));
        assert!(Uuid::parse_str(&values.key).is_ok());
        assert!(Uuid::parse_str(values.secret.expose_secret()).is_ok());
        assert_ne!(values.key, values.secret.expose_secret());
        assert!(values.settings.active);
        assert!(values.settings.allowed_origins.as_strings().is_empty());
        assert_eq!(values.settings.client_events, ClientEvents::Authorized);
        assert!(!values.settings.shared_tokens);
        assert_eq!(values.settings.history_publications, None);
        assert_eq!(values.settings.history_seconds, None);
        assert!(values.settings.pusher && values.settings.subscription_count);
        assert!(!values.settings.authorized_only);
    }

    #[test]
    fn forms_and_json_say_the_same() {
        for (case, given) in [
            (
                "form",
                json!({
                    "name": "foo-app", "slug": "bar", "key": "k", "secret": "0123456789abcdef",
                    "active": "0", "allowed_origins": ["https://a.example", ""],
                    "client_events": "none", "shared_tokens": "true",
                    "history_publications": "0100", "history_seconds": "",
                }),
            ),
            (
                "JSON",
                json!({
                    "name": "foo-app", "slug": "bar", "key": "k", "secret": "0123456789abcdef",
                    "active": false, "allowed_origins": ["https://a.example"],
                    "client_events": "none", "shared_tokens": true, "id": 7, "nonsense": {},
                    "history_publications": 100, "history_seconds": null,
                }),
            ),
        ] {
            let values = new(given);
            assert_eq!((values.slug.as_str(), values.key.as_str()), ("bar", "k"), "{case}");
            assert_eq!(values.secret.expose_secret(), "0123456789abcdef", "{case}");
            assert!(!values.settings.active && values.settings.shared_tokens, "{case}");
            assert_eq!(
                values.settings.allowed_origins.as_strings(),
                ["https://a.example"],
                "{case}"
            );
            assert_eq!(values.settings.client_events, ClientEvents::None, "{case}");
            assert_eq!(values.settings.history_publications, UpTo::new(100), "{case}");
            assert_eq!(values.settings.history_seconds, None, "{case}");
        }
    }

    #[test]
    fn slugs_are_made_from_names() {
        let long = "long name ".repeat(20);
        let cut_at_a_hyphen = format!("{} tail", "x".repeat(62));
        let (x62, long_slug) = ("x".repeat(62), "long-name-".repeat(6) + "lon");
        for (name, slug) in [
            ("foo-app", "foo-app"),
            ("Foo App", "foo-app"),
            ("  Caf\u{e9} & Th\u{e9}  ", "cafe-the"),
            ("a__b::c", "a-b-c"),
            ("\u{6771}\u{4eac}\u{306e}\u{4eba}\u{3005}", "dong-jing-noren"),
            ("2 + 2 = 4", "2-2-4"),
            (&long, &long_slug),
            (&cut_at_a_hyphen, &x62),
        ] {
            let made = new(json!({ "name": name })).slug;
            assert!(made.as_str().starts_with(slug), "{name:?} made {made}");
            assert!(Slug::parse(made.as_str()).is_some(), "{name:?}");
        }
    }

    #[test]
    fn each_fault_of_a_new_app_is_named() {
        let long = "x".repeat(256);
        let many: Vec<_> = (0..101).map(|n| format!("//a{n}.example")).collect();
        for (case, given, expected) in [
            ("no name", json!({}), json!({"name": ["can't be blank"]})),
            ("null", json!({"name": null}), json!({"name": ["can't be blank"]})),
            ("empty", json!({"name": ""}), json!({"name": ["can't be blank"]})),
            ("spaces", json!({"name": "      "}), json!({"name": ["can't be blank"]})),
            ("a number", json!({"name": 12345}), json!({"name": ["is invalid"]})),
            ("a list", json!({"name": ["foo-app"]}), json!({"name": ["is invalid"]})),
            (
                "short",
                json!({"name": "four"}),
                json!({"name": ["should be at least 5 character(s)"]}),
            ),
            ("just enough", json!({"name": "fives"}), json!({})),
            (
                "characters, not bytes",
                json!({"name": "\u{e9}\u{e9}\u{e9}\u{e9}"}),
                json!({"name": ["should be at least 5 character(s)"]}),
            ),
            (
                "long",
                json!({"name": long}),
                json!({"name": ["should be at most 255 character(s)"]}),
            ),
            ("not too long", json!({"name": "x".repeat(255)}), json!({})),
            ("255 of many bytes", json!({"name": "\u{e9}".repeat(255)}), json!({})),
            (
                "short, with a control character",
                json!({"name": "a\u{0}"}),
                json!({"name": [
                    "should be at least 5 character(s)", "must not contain control characters",
                ]}),
            ),
            (
                "a control character of Latin 1",
                json!({"name": "foo\u{85}app"}),
                json!({"name": ["must not contain control characters"]}),
            ),
            (
                "nothing to make a slug from",
                json!({"name": "!!!!!"}),
                json!({"name": ["must contain letters or digits to make a slug from"]}),
            ),
            ("a slug was given instead", json!({"name": "!!!!!", "slug": "x"}), json!({})),
            (
                "bad slug",
                json!({"name": "foo-app", "slug": "Foo_App"}),
                json!({"slug": ["must be 1 to 63 of a-z, 0-9 and -"]}),
            ),
            (
                "slug of a wrong type",
                json!({"name": "foo-app", "slug": 1}),
                json!({"slug": ["is invalid"]}),
            ),
            ("empty slug", json!({"name": "foo-app", "slug": ""}), json!({})),
            (
                "key with a colon",
                json!({"name": "foo-app", "key": "a:b"}),
                json!({"key": ["must be 1 to 64 of A-Z, a-z, 0-9, ., _, ~ and -"]}),
            ),
            (
                "key with a slash",
                json!({"name": "foo-app", "key": "a/b"}),
                json!({"key": ["must be 1 to 64 of A-Z, a-z, 0-9, ., _, ~ and -"]}),
            ),
            (
                "long key",
                json!({"name": "foo-app", "key": "x".repeat(65)}),
                json!({"key": ["must be 1 to 64 of A-Z, a-z, 0-9, ., _, ~ and -"]}),
            ),
            (
                "longest key of every kind of character",
                json!({"name": "foo-app", "key": format!("{}aZ09._~-", "x".repeat(56))}),
                json!({}),
            ),
            ("empty key", json!({"name": "foo-app", "key": "", "secret": null}), json!({})),
            (
                "short secret",
                json!({"name": "foo-app", "secret": "0123456789abcde"}),
                json!({"secret": ["should be at least 16 character(s)"]}),
            ),
            (
                "secret with a line end",
                json!({"name": "foo-app", "secret": "0123456789abcdef\n"}),
                json!({"secret": ["must not contain control characters"]}),
            ),
            (
                "numeric secret",
                json!({"name": "foo-app", "secret": 1e20}),
                json!({"secret": ["is invalid"]}),
            ),
            (
                "bad bool",
                json!({"name": "foo-app", "active": "yes"}),
                json!({"active": ["is invalid"]}),
            ),
            (
                "number for a bool",
                json!({"name": "foo-app", "active": 1}),
                json!({"active": ["is invalid"]}),
            ),
            (
                "empty bool",
                json!({"name": "foo-app", "active": ""}),
                json!({"active": ["can't be blank"]}),
            ),
            (
                "null bool",
                json!({"name": "foo-app", "shared_tokens": null}),
                json!({"shared_tokens": ["can't be blank"]}),
            ),
            (
                "client events",
                json!({"name": "foo-app", "client_events": "some"}),
                json!({"client_events": ["is invalid"]}),
            ),
            (
                "client events of a wrong type",
                json!({"name": "foo-app", "client_events": true}),
                json!({"client_events": ["is invalid"]}),
            ),
            (
                "as much history as an app may ask for",
                json!({"name": "foo-app", "history_publications": 100_000, "history_seconds": "604800"}),
                json!({}),
            ),
            (
                "no history",
                json!({"name": "foo-app", "history_publications": 0, "history_seconds": "0"}),
                json!({}),
            ),
            (
                "too much history",
                json!({"name": "foo-app", "history_publications": 100_001, "history_seconds": "604801"}),
                json!({
                    "history_publications": ["must be a whole number from 0 to 100000"],
                    "history_seconds": ["must be a whole number from 0 to 604800"],
                }),
            ),
            (
                "numbers that are not whole",
                json!({"name": "foo-app", "history_publications": 1.5, "history_seconds": -1}),
                json!({
                    "history_publications": ["must be a whole number from 0 to 100000"],
                    "history_seconds": ["must be a whole number from 0 to 604800"],
                }),
            ),
            (
                "texts that are no numbers",
                json!({"name": "foo-app", "history_publications": "+1", "history_seconds": "5m"}),
                json!({
                    "history_publications": ["must be a whole number from 0 to 100000"],
                    "history_seconds": ["must be a whole number from 0 to 604800"],
                }),
            ),
            (
                "a number beyond all numbers",
                json!({"name": "foo-app", "history_publications": "9".repeat(99), "history_seconds": 1e20}),
                json!({
                    "history_publications": ["must be a whole number from 0 to 100000"],
                    "history_seconds": ["must be a whole number from 0 to 604800"],
                }),
            ),
            (
                "numbers of a wrong type",
                json!({"name": "foo-app", "history_publications": true, "history_seconds": [60]}),
                json!({"history_publications": ["is invalid"], "history_seconds": ["is invalid"]}),
            ),
            (
                "origins that are no list",
                json!({"name": "foo-app", "allowed_origins": "https://a.example"}),
                json!({"allowed_origins": ["is invalid"]}),
            ),
            (
                "origins by index",
                json!({"name": "foo-app", "allowed_origins": {"0": "https://a.example"}}),
                json!({"allowed_origins": ["is invalid"]}),
            ),
            (
                "an origin that is a number",
                json!({"name": "foo-app", "allowed_origins": ["//a.example", 1]}),
                json!({"allowed_origins": ["is invalid"]}),
            ),
            ("no origins", json!({"name": "foo-app", "allowed_origins": []}), json!({})),
            (
                "origins emptied by a form",
                json!({"name": "foo-app", "allowed_origins": ""}),
                json!({}),
            ),
            (
                "a blank origin",
                json!({"name": "foo-app", "allowed_origins": [""]}),
                json!({"allowed_origins": ["can't be blank"]}),
            ),
            (
                "blank origins",
                json!({"name": "foo-app", "allowed_origins": ["", ""]}),
                json!({"allowed_origins": ["can't be blank"]}),
            ),
            (
                "a blank beside an origin",
                json!({"name": "foo-app", "allowed_origins": ["", "//a.example", ""]}),
                json!({}),
            ),
            (
                "too many origins",
                json!({"name": "foo-app", "allowed_origins": many}),
                json!({"allowed_origins": ["\"//a100.example\" is one origin too many"]}),
            ),
            (
                "all at once",
                json!({"name": "x", "secret": "x", "active": 7}),
                json!({
                    "name": ["should be at least 5 character(s)"],
                    "secret": ["should be at least 16 character(s)"],
                    "active": ["is invalid"],
                }),
            ),
        ] {
            assert_eq!(faults_of_new(given), expected, "{case}");
        }
    }

    #[test]
    fn every_bad_origin_is_named() {
        let given =
            json!({"name": "foo-app", "allowed_origins": ["a.example", "//b.example", "c"]});
        let faults = faults_of_new(given);
        let named = faults["allowed_origins"].as_array().expect("faults").len();
        assert_eq!(named, 2, "{faults}");
    }

    #[test]
    fn a_change_keeps_the_value_of_an_absent_field() {
        assert!(change(json!({})).expect("no faults").are_those_of(&stored()));
    }

    #[test]
    fn a_slug_follows_the_name_and_nothing_else() {
        for (case, given, slug) in [
            ("same name", json!({"name": "Foo App"}), "chosen-slug"),
            ("new name", json!({"name": "Bar App"}), "bar-app"),
            ("a slug alone", json!({"slug": "other"}), "chosen-slug"),
            ("a bad slug", json!({"slug": "No Slug"}), "chosen-slug"),
            ("both", json!({"name": "Bar App", "slug": "other"}), "bar-app"),
        ] {
            assert_eq!(change(given).expect("no faults").slug.as_str(), slug, "{case}");
        }
    }

    #[test]
    fn empty_keys_are_made_anew() {
        let values = change(json!({"key": "", "secret": ""})).expect("no faults");
        assert!(Uuid::parse_str(&values.key).is_ok());
        assert!(Uuid::parse_str(values.secret.expose_secret()).is_ok());
        let values = change(json!({"key": "k2"})).expect("no faults");
        assert_eq!(values.key, "k2");
        assert_eq!(values.secret.expose_secret(), "a secret of some length");
    }

    #[test]
    fn every_field_says_whether_an_app_may_set_it_itself() {
        let own = ["name", "slug", "key", "secret"];
        let settings = AppSettings::DESCRIBED.iter().map(|setting| setting.name);
        let all: Vec<_> = own.into_iter().chain(settings).collect();
        assert_eq!(WRITABLE.iter().map(|field| field.name).collect::<Vec<_>>(), all);
    }

    #[test]
    fn an_app_sets_its_settings_and_its_pair_and_nothing_else() {
        let by_app = |given: Value| {
            let fields =
                AppFields::read_by(FieldWriter::App, given.as_object().expect("an object"));
            Draft::of_change(fields, &stored()).finish()
        };
        let given = json!({
            "key": "another-key", "secret": "", "allowed_origins": [], "client_events": "none",
            "shared_tokens": true, "history_publications": 1, "history_seconds": 2, "id": 9,
            "pusher": false, "subscription_count": false, "authorized_only": true,
        });
        let values = by_app(given).expect("no faults");
        let changed = [
            "key",
            "secret",
            "allowed_origins",
            "client_events",
            "shared_tokens",
            "history_publications",
            "history_seconds",
            "pusher",
            "subscription_count",
            "authorized_only",
        ];
        assert_eq!(values.differences(&stored()), changed);
        let faults = by_app(json!({"name": "Foo App", "active": false, "client_events": "x"}));
        assert_eq!(
            serde_json::to_value(faults.expect_err("faults")).expect("JSON"),
            json!({
                "name": ["can be changed by the administrator only"],
                "active": ["can be changed by the administrator only"],
                "client_events": ["is invalid"],
            })
        );
    }

    #[test]
    fn a_faulty_change_changes_nothing() {
        let faults = change(json!({"name": "", "secret": "x"})).expect_err("faults");
        assert_eq!(
            serde_json::to_value(faults).expect("JSON"),
            json!({"name": ["can't be blank"], "secret": ["should be at least 16 character(s)"]})
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let fields = fields(json!({"name": "foo-app", "secret": "very-secret-indeed"}));
        let printed = format!("{fields:?} {:?}", Draft::of_new(fields.clone()));
        assert!(!printed.contains("very-secret-indeed"), "{printed}");
    }
}
