//! Version 1 of the wire: a JSON object.

use std::collections::HashMap;

use herald::phoenix::message::Version;
use serde_json::value::RawValue;

use super::text::{self, Parts};

/// The bytes are a text frame.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    text::check(Version::V1, text, parts(text));
}

/// The five keys that count, the last of each.
fn parts(text: &str) -> Option<Parts> {
    let mut keys: HashMap<String, Box<RawValue>> = serde_json::from_str(text).ok()?;
    Some(Parts {
        join_ref: keys.remove("join_ref"),
        reference: keys.remove("ref")?,
        topic: keys.remove("topic")?,
        event: keys.remove("event")?,
        payload: keys.remove("payload")?,
    })
}
