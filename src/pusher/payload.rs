//! Payloads as Pusher's clients get them: the data of an event is a text.

use std::borrow::Cow;

/// The data that stands for a payload, which is any JSON value: the text that a JSON string holds, or else
/// the JSON itself.
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
