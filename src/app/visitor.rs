//! Visitors: the users that tokens stand for, on topics that show their members.

use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The user that presents a token.
#[derive(Clone)]
pub struct Visitor {
    /// The key that distinguishes the visitor from others: 1 to [`Visitor::KEY_BYTES_MAX`] bytes.
    pub key: String,
    /// The visitor's `presence` claim: a JSON object, as it was written.
    pub claim: Option<Box<RawValue>>,
}

/// Names that every JavaScript object has from the start: older clients keep visitors in plain
/// objects, and would fail on one of these names.
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
pub(super) struct Names<'a> {
    pub(super) sub: Option<&'a RawValue>,
    pub(super) id: Option<&'a RawValue>,
    pub(super) email: Option<&'a RawValue>,
}

/// The members of a `sub` object that can name a visitor.
#[derive(Default, Deserialize)]
struct Subject<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    email: Option<&'a RawValue>,
}

impl Visitor {
    /// The most bytes a key may have.
    pub const KEY_BYTES_MAX: usize = 128;

    /// Reads the visitor that the claims name; `None` if there is none, or if its name cannot be a
    /// key.
    ///
    /// The first of these that is a string or a number is the key, and if it cannot be a key, no
    /// other takes its place: `sub`, the `id` and the `email` in a `sub` that is an object, then
    /// the `id` and the `email` beside it. Numbers become text as they are written.
    pub(super) fn read(names: Names<'_>, claim: Option<&RawValue>) -> Option<Self> {
        let Names { sub, id, email } = names;
        let within = sub.and_then(subject).unwrap_or_default();
        let candidates = [sub, within.id, within.email, id, email];
        let scalar = candidates.into_iter().flatten().find(|raw| is_scalar(raw))?;
        let key = match scalar.get().starts_with('"') {
            true => serde_json::from_str(scalar.get()).ok()?,
            false => scalar.get().to_owned(),
        };
        let fits = (1..=Self::KEY_BYTES_MAX).contains(&key.len());
        if !fits || BORN_WITH.contains(&key.as_str()) {
            return None;
        }
        let claim = claim.filter(|raw| raw.get().starts_with('{')).map(ToOwned::to_owned);
        Some(Self { key, claim })
    }
}

/// Shows neither the key nor the claim.
impl fmt::Debug for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visitor").finish_non_exhaustive()
    }
}

fn subject(sub: &RawValue) -> Option<Subject<'_>> {
    // Serde would also read a struct from an array.
    let is_object = sub.get().starts_with('{');
    is_object.then(|| serde_json::from_str(sub.get()).ok()).flatten()
}

/// Whether this is a string or a number.
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
        let names = Names { sub: sub.as_deref(), id: id.as_deref(), email: email.as_deref() };
        Visitor::read(names, None).map(|visitor| visitor.key)
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
        let names = Names { sub: Some(half), ..Names::default() };
        assert!(Visitor::read(names, None).is_none(), "half a character");
        let digits = "1".repeat(129);
        let long: &RawValue = serde_json::from_str(&digits).expect("JSON");
        assert!(Visitor::read(Names { sub: Some(long), ..Names::default() }, None).is_none());
    }

    #[test]
    fn only_an_object_is_a_claim_about_a_visitor() {
        let sub = raw(&json!("ada"));
        let names = Names { sub: sub.as_deref(), ..Names::default() };
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
