//! The `sub` of a token: the user for whom it was minted, who is recognised by digests.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::strict_json::{Container, NotStrict, Token, Tokens, check};

/// The `sub` of a token, which may be any JSON value.
///
/// Two subjects are equal if their JSON is: the order of an object's members does not matter, nor
/// how a number is written, while the number `1` and the string `"1"` differ. Numbers are compared
/// by all their digits, never as doubles, which would make neighbouring large ids equal. Only
/// digests are kept, one of the whole and one of each member of an object: they take little memory,
/// and the user cannot be read from them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The digest of the whole first, then those of the members.
    digests: Box<[SubjectDigest]>,
}

/// Some members of an object. They match a [`Subject`] that has them, whatever other members it
/// has.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectMembers(Box<[SubjectDigest]>);

/// Half of a SHA-256: a second value with the same digest cannot be found.
type SubjectDigest = [u8; 16];

/// The reason why a value cannot be a subject: it is not [strict JSON](crate::strict_json), or has
/// an exponent beyond 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Some JSON parsers reject the value, or read it differently.
    #[error(transparent)]
    NotStrict(#[from] NotStrict),
    /// An exponent has too many digits.
    #[error("has an exponent that is too large")]
    Exponent,
}

/// The reason why a value names no members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// The value cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The value is not an object, or is an empty one, which would match any object.
    #[error("must be an object with at least one member to match")]
    NoMembers,
}

impl Subject {
    /// Reads a value.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn of(raw: &RawValue) -> Result<Self, Unreadable> {
        let Spelled { whole, members } = Spelled::of(raw)?;
        let members = members.iter().map(|member| digest(member));
        Ok(Self { digests: [digest(&whole)].into_iter().chain(members).collect() })
    }

    /// The digest of the whole value.
    pub fn digest(&self) -> &[u8] {
        self.digests.first().map_or(&[], |whole| whole)
    }

    /// Returns whether the subject is an object that has all these members.
    pub fn has(&self, SubjectMembers(sought): &SubjectMembers) -> bool {
        let members = self.digests.get(1..).unwrap_or_default();
        sought.iter().all(|member| members.contains(member))
    }
}

impl SubjectMembers {
    /// Reads an object.
    ///
    /// # Errors
    /// [`MembersError`].
    pub fn of(raw: &RawValue) -> Result<Self, MembersError> {
        let Spelled { members, .. } = Spelled::of(raw)?;
        if members.is_empty() {
            return Err(MembersError::NoMembers);
        }
        Ok(Self(members.iter().map(|member| digest(member)).collect()))
    }
}

/// A value in the canonical spelling, which all equal values share.
struct Spelled {
    whole: String,
    /// The members, if it is an object.
    members: Vec<String>,
}

impl Spelled {
    fn of(raw: &RawValue) -> Result<Self, Unreadable> {
        // The check comes first: the code below recurses, and needs unique members in an object.
        check(raw)?;
        let mut tokens = Tokens::of(raw);
        let (mut whole, mut members) = (String::new(), Vec::new());
        match tokens.next()? {
            Some(Token::Open(Container::Object)) => {
                members = spelled_members(&mut tokens)?;
                spell_object(&mut whole, &members);
            }
            Some(token) => spell(&mut whole, token, &mut tokens)?,
            None => {}
        }
        Ok(Self { whole, members })
    }
}

fn digest(spelled: &str) -> SubjectDigest {
    let mut digest = SubjectDigest::default();
    digest.copy_from_slice(&Sha256::digest(spelled)[..size_of::<SubjectDigest>()]);
    digest
}

/// Shows no digest, because a digest of a short id is easily guessed.
impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

impl fmt::Debug for SubjectMembers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// Appends the canonical spelling of the value that begins with `token`.
fn spell(json: &mut String, token: Token<'_>, tokens: &mut Tokens<'_>) -> Result<(), Unreadable> {
    match token {
        Token::Open(Container::Array) => {
            json.push('[');
            while let Some(token) = tokens.next()?.filter(|token| *token != Token::Close) {
                spell(json, token, tokens)?;
                json.push(',');
            }
            json.push(']');
        }
        Token::Open(Container::Object) => {
            let members = spelled_members(tokens)?;
            spell_object(json, &members);
        }
        Token::Text { quoted, .. } => {
            let text: String =
                serde_json::from_slice(quoted).map_err(|_| NotStrict::LoneSurrogate)?;
            json.push_str(&serde_json::Value::from(text).to_string());
        }
        Token::Number(number) => json.push_str(&normal_number(number)?),
        Token::Word(word) => json.push_str(&String::from_utf8_lossy(word)),
        Token::Close => {}
    }
    Ok(())
}

/// Spells the members of an object that was just opened, in the order of their names.
fn spelled_members(tokens: &mut Tokens<'_>) -> Result<Vec<String>, Unreadable> {
    let mut members = BTreeMap::new();
    while let Some(key) = tokens.next()?.filter(|token| *token != Token::Close) {
        let (mut name, mut value) = (String::new(), String::new());
        spell(&mut name, key, tokens)?;
        if let Some(token) = tokens.next()? {
            spell(&mut value, token, tokens)?;
        }
        members.insert(name, value);
    }
    Ok(members.into_iter().map(|(name, value)| format!("{name}:{value}")).collect())
}

fn spell_object(json: &mut String, members: &[String]) {
    json.push('{');
    for member in members {
        json.extend([member, ","]);
    }
    json.push('}');
}

/// The canonical spelling of a number: JSON has no integers, so `1`, `1.0` and `10e-1` are one
/// number. `-12.30e4` becomes `-123e3`: a sign, digits that neither begin nor end with a zero, and
/// a power of ten.
fn normal_number(number: &[u8]) -> Result<String, Unreadable> {
    let number = String::from_utf8_lossy(number);
    let (sign, magnitude) = match number.strip_prefix('-') {
        Some(magnitude) => ("-", magnitude),
        None => ("", &*number),
    };
    let (mantissa, exponent) = magnitude.split_once(['e', 'E']).unwrap_or((magnitude, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Ok("0".to_owned());
    }
    let trailing_zeros = digits.len() - digits.trim_end_matches('0').len();
    let exponent: i64 = exponent.parse().map_err(|_| Unreadable::Exponent)?;
    let power = i128::from(exponent) + trailing_zeros as i128 - fraction.len() as i128;
    Ok(format!("{sign}{significant}e{power}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(json: &str) -> Subject {
        let raw: &RawValue = serde_json::from_str(json).expect("JSON");
        Subject::of(raw).expect("a subject")
    }

    #[test]
    fn equal_json_is_one_subject_however_it_is_written() {
        for (one, other) in [
            (r#""User:1""#, r#""\u0055ser:\u0031""#),
            ("1", "1.0"),
            ("1", "1e0"),
            ("0", "-0.0"),
            ("0", "0e99999999999999999999"),
            ("100", "1e2"),
            ("100", "1E+2"),
            ("0.015", "1.50e-2"),
            ("-12.30e4", "-123000"),
            ("9007199254740992", "9007199254740992.0"),
            ("9007199254740993", "9007199254740993.0"),
            ("123456789012345678901234567890", "1.2345678901234567890123456789e29"),
            ("1e-999", "0.1e-998"),
            ("18446744073709551615", "18446744073709551615"),
            (r#"{"a":1,"b":[2,{"c":3,"d":4}]}"#, r#" {"b": [2.0, {"d":4, "c":3}], "a":1} "#),
            ("null", " null"),
        ] {
            assert_eq!(subject(one), subject(other), "{one} {other}");
        }
    }

    #[test]
    fn anything_else_is_another() {
        let all = [
            "1",
            "\"1\"",
            "-1",
            "1.5",
            "0",
            "\"\"",
            "null",
            "\"null\"",
            "true",
            "\"true\"",
            "false",
            "[]",
            "{}",
            "[1]",
            "[\"1\"]",
            "[[1]]",
            "[1,1]",
            "[1,2]",
            "[2,1]",
            "{\"a\":1}",
            "{\"a\":\"1\"}",
            "{\"b\":1}",
            "\"User:1\"",
            "\"user:1\"",
            "\"User:1 \"",
            "\"User:10\"",
            "18446744073709551614",
            "18446744073709551615",
            // From here on neighbours are one and the same double.
            "18446744073709551616",
            "18446744073709551617",
            "-18446744073709551617",
            "9007199254740992",
            "9007199254740993",
            "9007199254740993.5",
            "0.1",
            "0.1000000000000000000001",
            "1e-999",
            "1e-998",
            "[18446744073709551616]",
            "[18446744073709551617]",
            "{\"a\":18446744073709551616}",
            "{\"a\":18446744073709551617}",
            "[1,[2]]",
            "[[1,2]]",
            "[[],[]]",
            "[[[]]]",
            "{\"a\":{\"b\":1}}",
            "{\"a\":{},\"b\":1}",
            "\"1e0\"",
            "\"a\\\",\\\"b\"",
        ];
        for (nth, one) in all.iter().enumerate() {
            for other in &all[nth + 1..] {
                assert_ne!(subject(one), subject(other), "{one} {other}");
            }
        }
    }

    fn members(json: &str) -> Result<SubjectMembers, MembersError> {
        SubjectMembers::of(serde_json::from_str(json).expect("JSON"))
    }

    #[test]
    fn a_subject_has_those_of_its_members_whose_name_and_whole_value_are_given() {
        let of = r#"{"id":7,"name":"Ada","groups":[1,2],"org":{"id":1,"plan":"x"}}"#;
        for (sought, is_found) in [
            (r#"{"id":7}"#, true),
            (r#"{"id":7.0}"#, true),
            (r#"{"name":"Ada","id":7}"#, true),
            (r#"{"org":{"plan":"x","id":1}}"#, true),
            (of, true),
            (r#"{"id":"7"}"#, false),
            (r#"{"id":8}"#, false),
            (r#"{"ID":7}"#, false),
            (r#"{"id":7,"name":"Bob"}"#, false),
            (r#"{"id":7,"extra":null}"#, false),
            (r#"{"org":{"id":1}}"#, false),
            (r#"{"groups":[1]}"#, false),
        ] {
            assert_eq!(subject(of).has(&members(sought).expect("members")), is_found, "{sought}");
        }
        let seven = members(r#"{"id":7}"#).expect("members");
        for of in ["7", "\"7\"", "null", "{}", "[7]", r#"[{"id":7}]"#, r#"{"a":{"id":7}}"#] {
            assert!(!subject(of).has(&seven), "{of}");
        }
        assert!(subject(r#"{"id":7}"#).has(&seven), "the whole is one member");
    }

    #[test]
    fn only_an_object_with_members_names_some() {
        for json in ["{}", "[]", "7", "\"id\"", "null", "[{\"id\":7}]"] {
            assert_eq!(members(json), Err(MembersError::NoMembers), "{json}");
        }
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(200), "]".repeat(200));
        assert_eq!(
            members(&deep),
            Err(MembersError::Unreadable(Unreadable::NotStrict(NotStrict::TooDeep)))
        );
    }

    #[test]
    fn a_value_that_some_reader_refuses_is_not_a_subject() {
        for (levels, is_read) in [(128, true), (129, false), (100_000, false)] {
            let json = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
            let raw: &RawValue = serde_json::from_str(&json).expect("JSON");
            assert_eq!(Subject::of(raw).is_ok(), is_read, "{levels}");
        }
        let repeated = r#"{"id":1,"id":2}"#;
        for (json, expected) in [
            ("1e999", NotStrict::NumberTooLarge.into()),
            (r#""\ud800""#, NotStrict::LoneSurrogate.into()),
            (repeated, NotStrict::RepeatedKey.into()),
            ("1e-9223372036854775809", Unreadable::Exponent),
        ] {
            let raw: &RawValue = serde_json::from_str(json).expect("JSON");
            assert_eq!(Subject::of(raw), Err(expected), "{json}");
        }
    }
}
