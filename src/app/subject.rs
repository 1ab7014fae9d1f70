//! The `sub` of a token: whom it was minted for, recognised again without being kept.

use std::fmt;

use serde_json::{Number, Value, value::RawValue};
use sha2::{Digest, Sha256};

/// Whole numbers up to here are the same whether they are read as integer or as float.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// What a token's `sub` says, whatever JSON it is.
///
/// Two are equal if their JSON is: the order of an object's members does not matter, nor how a
/// number is written, while the number `1` and the string `"1"` differ. Only a digest is kept: it
/// takes the same little memory for any value, and who it stands for cannot be read from it.
#[derive(Clone, PartialEq, Eq)]
pub struct Subject([u8; 32]);

/// The value nests beyond 128 levels, or has a number that is larger than any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is nested too deeply, or has a number that is too large")]
pub struct Unreadable;

impl Subject {
    /// Reads a value.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn of(raw: &RawValue) -> Result<Self, Unreadable> {
        let value: Value = serde_json::from_str(raw.get()).map_err(|_| Unreadable)?;
        Ok(Self(Sha256::digest(normal(value).to_string()).into()))
    }
}

/// A digest of a short id is soon guessed.
impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// The one spelling of all values that are equal.
fn normal(value: Value) -> Value {
    match value {
        Value::Number(number) => Value::Number(normal_number(number)),
        Value::Array(items) => items.into_iter().map(normal).collect(),
        Value::Object(members) => {
            // Whether a map sorts its members is its own choice, at compile time.
            let mut members: Vec<_> = members.into_iter().collect();
            members.sort_by(|(one, _), (other, _)| one.cmp(other));
            members.into_iter().map(|(name, value)| (name, normal(value))).collect()
        }
        other => other,
    }
}

/// JSON knows no integers: `1`, `1.0` and `1e0` are one number.
fn normal_number(number: Number) -> Number {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= WHOLE_MAX => {
            Number::from(float as i64)
        }
        _ => number,
    }
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
            ("9007199254740992", "9007199254740992.0"),
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
        ];
        for (nth, one) in all.iter().enumerate() {
            for other in &all[nth + 1..] {
                assert_ne!(subject(one), subject(other), "{one} {other}");
            }
        }
    }

    #[test]
    fn what_nests_beyond_reading_is_none() {
        for (levels, is_read) in [(127, true), (128, false), (100_000, false)] {
            let json = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
            let raw: &RawValue = serde_json::from_str(&json).expect("JSON");
            assert_eq!(Subject::of(raw).is_ok(), is_read, "{levels}");
        }
        let raw: &RawValue = serde_json::from_str("1e999").expect("JSON");
        assert_eq!(Subject::of(raw), Err(Unreadable));
    }
}
