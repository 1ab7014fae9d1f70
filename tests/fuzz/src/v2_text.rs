//! Version 2 of the wire in text frames: a JSON array.

use herald::phoenix::message::Version;
use serde_json::value::RawValue;

use super::text::{self, Parts};

/// The bytes are a text frame.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    text::check(Version::V2, text, parts(text));
}

/// The first five elements; there may be more.
fn parts(text: &str) -> Option<Parts> {
    let elements: Vec<Box<RawValue>> = serde_json::from_str(text).ok()?;
    let mut elements = elements.into_iter();
    Some(Parts {
        join_ref: Some(elements.next()?),
        reference: elements.next()?,
        topic: elements.next()?,
        event: elements.next()?,
        payload: elements.next()?,
    })
}
