//! Payloads as Pusher's clients receive them: the data of an event is a string.

use std::borrow::Cow;

/// The data of an event with this payload: the content of a JSON string, or the JSON text of any other
/// value.
pub fn data_of(json: &str) -> Cow<'_, str> {
    let text = || serde_json::from_str(json).ok().map(Cow::Owned);
    match json.starts_with('"') {
        true => text().unwrap_or(Cow::Borrowed(json)),
        false => Cow::Borrowed(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_out_of_its_quotes_and_all_else_stays() {
        for (json, expected) in [
            (r#""hello""#, "hello"),
            (r#""{\"a\" : 1.0}""#, r#"{"a" : 1.0}"#),
            (r#""\u00e9\/""#, "\u{e9}/"),
            (r#""""#, ""),
            (r#"{"a" : 1.0}"#, r#"{"a" : 1.0}"#),
            ("[1, 2]", "[1, 2]"),
            ("-0", "-0"),
            ("null", "null"),
        ] {
            assert_eq!(data_of(json), expected, "{json}");
        }
    }
}
