//! Payloads that are not objects, for clients that expect objects.
//!
//! Triggers and Phoenix's clients can only publish objects. Other JSON is published over Pusher's protocol.

use std::borrow::Cow;

use crate::broker::JsonObject;

/// The object that replaces a payload: the payload itself if it is an object, the object in a JSON string, or
/// else `{"data": …}` with the payload.
pub(super) fn carry(json: &str) -> Cow<'_, str> {
    match json.as_bytes().first() {
        Some(b'{') => Cow::Borrowed(json),
        Some(b'"') => held(json).unwrap_or_else(|| wrapped(json)).into(),
        _ => wrapped(json).into(),
    }
}

/// The object that a JSON string holds.
fn held(json: &str) -> Option<String> {
    let text: String = serde_json::from_str(json).ok()?;
    let object = JsonObject::parse(&text).ok()?;
    Some(object.as_str().to_owned())
}

fn wrapped(json: &str) -> String {
    format!(r#"{{"data":{json}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_reaches_a_client_as_an_object() {
        for (json, expected) in [
            (r#"{"a" : 1.0}"#, r#"{"a" : 1.0}"#),
            (r#""{\"a\" : 1.0}""#, r#"{"a" : 1.0}"#),
            (r#"" {} ""#, "{}"),
            (r#""hello""#, r#"{"data":"hello"}"#),
            (r#""{\"a\":1,\"a\":2}""#, r#"{"data":"{\"a\":1,\"a\":2}"}"#),
            (r#""[1]""#, r#"{"data":"[1]"}"#),
            (r#""""#, r#"{"data":""}"#),
            ("[1, 2]", r#"{"data":[1, 2]}"#),
            ("-0", r#"{"data":-0}"#),
            ("null", r#"{"data":null}"#),
            ("true", r#"{"data":true}"#),
        ] {
            assert_eq!(carry(json), expected, "{json}");
        }
        assert!(matches!(carry("{}"), Cow::Borrowed(_)), "an object is not copied");
    }
}
