//! An app's fields as they arrive from outside.
//!
//! [`AppFields`] holds the fields of a request, a [`Draft`] the app that would result, and [`AppValues`]
//! the values that may be stored; [`Faults`] are the faults of a request. Forms send strings for
//! everything, and JSON sends types: both are read here. This module does no I/O: between draft and
//! values, `change` checks in the database that name, slug and key are free.

mod draft;
mod faults;

use secrecy::SecretString;
use serde_json::{Map, Value};

use super::Slug;
pub(super) use draft::random;
pub use draft::{AppValues, Draft};
pub use faults::Faults;
pub(super) use faults::FieldFaults;

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
const PADDED: &str = "must not begin or end with white space";
const DOTS: &str = "must not be . or .., which a URL drops from its path";
/// The fault of a name, slug or key that another app has.
pub(super) const TAKEN: &str = "has already been taken";

/// The party that writes the fields of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldWriter {
    /// The operator, through the admin API or the command line.
    Operator,
    /// The web application itself.
    App,
}

/// The fields that a web application may not set itself.
const BY_OPERATOR_ONLY: [&str; 3] = ["name", "slug", "active"];

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
            match BY_OPERATOR_ONLY.into_iter().find(|name| name == field) {
                Some(name) if writer == FieldWriter::App => fields.faults.add(name, NOT_BY_APP),
                _ => fields.read_field(field, value),
            }
        }
        fields
    }

    /// Returns whether the request sets the secret, or has a new one made.
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
/// Pusher's clients dial: so it consists of the characters that no URL escapes, and is not a segment that URLs
/// resolve.
fn read_key(value: &Value) -> Result<Credential<String>, FieldFaults> {
    let key = read_text(value)?;
    if key.is_empty() {
        return Ok(Credential::Anew);
    }
    if [".", ".."].contains(&key) {
        return Err(vec![DOTS.into()]);
    }
    let is_unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-');
    match key.len() <= KEY_CHARS_MAX && key.bytes().all(is_unreserved) {
        true => Ok(Credential::Chosen(key.to_owned())),
        false => Err(vec!["must be 1 to 64 of A-Z, a-z, 0-9, ., _, ~ and -".into()]),
    }
}

/// The secret alone is a whole `Authorization` header, which HTTP strips of white space. All other characters
/// that are not control characters arrive: a secret that is not ASCII as UTF-8.
fn read_secret(value: &Value) -> Result<Credential<SecretString>, FieldFaults> {
    let secret = read_text(value)?;
    if secret.is_empty() {
        return Ok(Credential::Anew);
    }
    let mut faults = length_faults(secret, SECRET_CHARS_MIN);
    if secret.chars().any(char::is_control) {
        faults.push(CONTROL_CHARACTERS.into());
    } else if secret.trim().len() < secret.len() {
        faults.push(PADDED.into());
    }
    if faults.is_empty() { Ok(Credential::Chosen(secret.into())) } else { Err(faults) }
}

#[cfg(test)]
mod tests;
