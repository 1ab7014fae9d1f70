//! Recovery for Pusher's clients: a signed cursor in `channel_data`.
//!
//! Pusher's protocol has no recovery, but its clients send whatever `channel_data` the application's
//! endpoint signs. The field `since` of that JSON object is the cursor: the position after which a client
//! requests all events. A subscription with a cursor is told positions by events of its channel:
//! `herald:recovery` after the success, and `herald:position` after each event.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::broker::recovery::{Recovery, Since};

#[derive(Deserialize)]
struct Cursor<'a> {
    #[serde(borrow, default)]
    since: Option<&'a RawValue>,
}

/// The cursor of `channel_data`, if it has one. A cursor that is not a string counts as an invalid
/// position.
pub(super) fn read(channel_data: &str) -> Option<Since> {
    if !channel_data.trim_start().starts_with('{') {
        return None;
    }
    let since = serde_json::from_str::<Cursor<'_>>(channel_data).ok()?.since?;
    let text = serde_json::from_str::<String>(since.get());
    Some(text.map_or(Since::NoPosition, |text| Since::parse(&text)))
}

/// The data of `herald:recovery`. Its position lies just before the first event that the client is sent.
pub(super) fn described(recovery: &Recovery) -> String {
    let Recovery { incomplete, position, replayed, .. } = recovery;
    match incomplete {
        None => format!(r#"{{"complete":true,"position":"{position}","replayed":{replayed}}}"#),
        Some(incomplete) => format!(
            r#"{{"complete":false,"reason":"{}","position":"{position}","replayed":{replayed}}}"#,
            incomplete.as_str()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_text_in_an_object() {
        let position = "AAAAAAAAAAAAAAAAAAAAAA:7";
        let known = Since::Position(position.parse().expect("a position"));
        for (data, expected) in [
            (format!(r#"{{"since":"{position}"}}"#), Some(known)),
            (format!(r#"{{"user_id":1,"since":"{position}","x":[]}}"#), Some(known)),
            (r#"{"since":""}"#.into(), Some(Since::Now)),
            (r#"{"since":"x"}"#.into(), Some(Since::NoPosition)),
            (r#"{"since":7}"#.into(), Some(Since::NoPosition)),
            (r#"{"since":null}"#.into(), None),
            ("{}".into(), None),
            ("[1]".into(), None),
            ("x".into(), None),
        ] {
            assert_eq!(read(&data), expected, "{data}");
        }
    }
}
