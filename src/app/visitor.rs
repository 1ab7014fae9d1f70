//! Visitors: the users whom tokens name, on topics that show their members.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The user whom a token names.
#[derive(Clone)]
pub struct Visitor {
    /// The key that distinguishes the visitor from others: 1 to [`Visitor::KEY_BYTES_MAX`] bytes.
    pub key: String,
    /// The visitor's `presence` claim: a JSON object, as it was written.
    pub claim: Option<Box<RawValue>>,
}

/// The names of properties that every JavaScript object inherits. Older clients keep visitors in plain objects,
/// and would fail on a visitor with one of these names.
const BORN_WITH: [&str; 12] = [
    "__proto__",
    "constructor",
    "hasOwnProperty",
    "isPrototypeOf",
    "propertyIsEnumerable",
    "toLocaleString",
    "toString",
    "valueOf",
    "__defineGetter__",
    "__defineSetter__",
    "__lookupGetter__",
    "__lookupSetter__",
];

/// The claims that can name a visitor, unread.
#[derive(Clone, Copy, Default)]
pub(super) struct VisitorNames<'a> {
    pub(super) sub: Option<&'a RawValue>,
    pub(super) id: Option<&'a RawValue>,
    pub(super) email: Option<&'a RawValue>,
}

/// The members of a `sub` object that can name a visitor.
#[derive(Default, Deserialize)]
struct SubjectNames<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    email: Option<&'a RawValue>,
}

impl Visitor {
    /// The most bytes a key may have.
    pub const KEY_BYTES_MAX: usize = 128;

    /// Returns whether a text can be the key of a visitor.
    pub fn is_key(key: &str) -> bool {
        (1..=Self::KEY_BYTES_MAX).contains(&key.len()) && !BORN_WITH.contains(&key)
    }

    /// Reads the visitor that the claims name; `None` if there is none, or if its name cannot be a
    /// key.
    ///
    /// The first of these that is a string or a number is the key, and if it cannot be a key, no
    /// other takes its place: `sub`, the `id` and the `email` in a `sub` that is an object, then
    /// the `id` and the `email` beside it. Numbers become text as they are written.
    pub(super) fn read(names: VisitorNames<'_>, claim: Option<&RawValue>) -> Option<Self> {
        let key = name_in(names)?;
        if !Self::is_key(&key) {
            return None;
        }
        let claim = claim.filter(|raw| raw.get().starts_with('{')).map(ToOwned::to_owned);
        Some(Self { key, claim })
    }
}

/// The `sub` of a token as the console shows it beside a join: the text of a string or a number, or of
/// the `id` or else the `email` of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShownSub(Box<str>);

impl ShownSub {
    /// The most characters that are shown; a longer text is cut.
    const CHARS_MAX: usize = 128;

    /// Reads a `sub`; `None` if it has no such text.
    pub(super) fn of(sub: &RawValue) -> Option<Self> {
        let text = name_in(VisitorNames { sub: Some(sub), ..VisitorNames::default() })?;
        Some(Self::named(&text))
    }

    /// The user that Pusher's protocol names by this text.
    pub fn named(text: &str) -> Self {
        Self(text.chars().take(Self::CHARS_MAX).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Does not show the text, which names a person.
impl fmt::Debug for ShownSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// The first string or number among the claims that can name a visitor, as text.
fn name_in(VisitorNames { sub, id, email }: VisitorNames<'_>) -> Option<String> {
    let within = sub.and_then(subject).unwrap_or_default();
    let candidates = [sub, within.id, within.email, id, email];
    let scalar = candidates.into_iter().flatten().find(|raw| is_scalar(raw))?;
    match scalar.get().starts_with('"') {
        true => serde_json::from_str(scalar.get()).ok(),
        false => Some(scalar.get().to_owned()),
    }
}

/// Shows neither the key nor the claim.
impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visitor").finish_non_exhaustive()
    }
}

fn subject(sub: &RawValue) -> Option<SubjectNames<'_>> {
    // Serde would also read a struct from an array.
    let is_object = sub.get().starts_with('{');
    is_object.then(|| serde_json::from_str(sub.get()).ok()).flatten()
}

/// Returns whether this is a string or a number.
fn is_scalar(raw: &RawValue) -> bool {
    raw.get().starts_with(|first: char| matches!(first, '"' | '-' | '0'..='9'))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn raw(value: &Value) -> Option<Box<RawValue>> {
        // A member that the token lacks is left out rather than written as null.
        (*value != json!("absent")).then(|| serde_json::value::to_raw_value(value).expect("JSON"))
    }

    fn key(sub: &Value, id: &Value, email: &Value) -> Option<String> {
        let [sub, id, email] = [sub, id, email].map(raw);
        let names =
            VisitorNames { sub: sub.as_deref(), id: id.as_deref(), email: email.as_deref() };
        Visitor::read(names, None).map(|visitor| visitor.key)
    }

    #[test]
    fn a_sub_is_shown_as_a_short_text() {
        let long = "\u{e9}".repeat(ShownSub::CHARS_MAX + 1);
        for (sub, expected) in [
            (json!("User:1"), Some("User:1")),
            (json!(7), Some("7")),
            (json!({ "id": 7, "email": "e" }), Some("7")),
            (json!({ "email": "e" }), Some("e")),
            (json!("__proto__"), Some("__proto__")),
            (json!(long), Some(&long[..2 * ShownSub::CHARS_MAX])),
            (json!({ "name": "Ada" }), None),
            (json!(["ada"]), None),
            (json!(null), None),
        ] {
            let raw = serde_json::value::to_raw_value(&sub).expect("JSON");
            let shown = ShownSub::of(&raw);
            assert_eq!(shown.as_ref().map(ShownSub::as_str), expected, "{sub}");
        }
    }

    #[test]
    fn e167_the_first_string_or_number_is_the_key() {
        let none = json!("absent");
        for (case, sub, id, email, expected) in [
            ("a string", json!("ada"), json!(1), json!("e"), Some("ada")),
            ("an integer", json!(7), none.clone(), none.clone(), Some("7")),
            ("a negative one", json!(-7), none.clone(), none.clone(), Some("-7")),
            (
                "a large one",
                json!(u64::MAX),
                none.clone(),
                none.clone(),
                Some("18446744073709551615"),
            ),
            ("a fraction", json!(1.5), none.clone(), none.clone(), Some("1.5")),
            ("escapes", json!("a\"\n\u{e9}"), none.clone(), none.clone(), Some("a\"\n\u{e9}")),
            ("its id", json!({"id": 7, "email": "e"}), json!(1), none.clone(), Some("7")),
            ("its email", json!({"id": null, "email": "e"}), json!(1), none.clone(), Some("e")),
            ("the id beside", json!({"id": [7]}), json!(1), json!("e"), Some("1")),
            ("the email beside", json!({}), none.clone(), json!("e"), Some("e")),
            ("no sub at all", none.clone(), json!("i"), none.clone(), Some("i")),
            ("an array", json!(["ada"]), json!(true), none.clone(), None),
            ("null", json!(null), none.clone(), none.clone(), None),
            ("nothing", none.clone(), none.clone(), none.clone(), None),
        ] {
            assert_eq!(key(&sub, &id, &email).as_deref(), expected, "{case}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_a_key_is_not_replaced_by_another() {
        let other = json!("other");
        for (sub, fits) in [
            ("k".repeat(128), true),
            ("k".repeat(129), false),
            ("\u{e9}".repeat(64), true),
            ("\u{e9}".repeat(65), false),
            (String::new(), false),
            ("__proto__".to_owned(), false),
            ("constructor".to_owned(), false),
            ("__proto".to_owned(), true),
        ] {
            let expected = fits.then(|| sub.clone());
            assert_eq!(key(&json!(sub), &other, &other), expected, "{sub}");
        }
        let half: &RawValue = serde_json::from_str(r#""\ud800""#).expect("JSON");
        let names = VisitorNames { sub: Some(half), ..VisitorNames::default() };
        assert!(Visitor::read(names, None).is_none(), "half a character");
        let digits = "1".repeat(129);
        let long: &RawValue = serde_json::from_str(&digits).expect("JSON");
        assert!(
            Visitor::read(VisitorNames { sub: Some(long), ..VisitorNames::default() }, None)
                .is_none()
        );
    }

    #[test]
    fn only_an_object_is_a_claim_about_a_visitor() {
        let sub = raw(&json!("ada"));
        let names = VisitorNames { sub: sub.as_deref(), ..VisitorNames::default() };
        for (claim, expected) in [
            (json!({"name": "Ada"}), Some(r#"{"name":"Ada"}"#)),
            (json!({}), Some("{}")),
            (json!(["name"]), None),
            (json!("Ada"), None),
            (json!(null), None),
        ] {
            let claim = raw(&claim);
            let visitor = Visitor::read(names, claim.as_deref()).expect("a visitor");
            assert_eq!(visitor.claim.as_ref().map(|c| c.get()), expected);
        }
    }
}
