//! Recovery: the join parameters `since` and `history`, and the field `recovery` of the reply.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::broker::{
    Sender,
    position::StreamPosition,
    recovery::{Recovery, Since, Wanted},
    subscriber::{Delivery, Frame},
};

use super::{message::ClientPayload, v2};

/// The event with a position, which follows each binary frame of a join that requested positions.
const POSITION: &str = "herald_position";

/// The history that a join requests; `None` if it has neither parameter.
pub(super) fn wanted(payload: &ClientPayload<'_>) -> Option<Wanted> {
    // A payload of bytes has no parameters.
    let ClientPayload::Json(payload) = payload else { return None };
    let is_named = |name: &str| memchr::memmem::find(payload.get().as_bytes(), name.as_bytes());
    // Most joins have neither parameter, and their payload is not parsed again.
    is_named("\"since\"").or_else(|| is_named("\"history\""))?;
    let params: BTreeMap<String, &RawValue> = serde_json::from_str(payload.get()).ok()?;
    let (since, history) = (params.get("since"), params.get("history"));
    (since.is_some() || history.is_some()).then(|| Wanted {
        since: since.map_or(Since::Now, |since| since_of(since)),
        newest_max: history.and_then(|newest| newest.get().parse().ok()).unwrap_or_default(),
    })
}

/// Reads a `since`, which may be any JSON.
fn since_of(since: &RawValue) -> Since {
    match serde_json::from_str::<Option<String>>(since.get()) {
        Ok(None) => Since::Now,
        Ok(Some(text)) => Since::parse(&text),
        Err(_) => Since::NoPosition,
    }
}

/// The field `recovery` of a reply's response, as JSON.
pub(super) fn described(recovery: &Recovery) -> String {
    let Recovery { incomplete, position, replayed, .. } = recovery;
    let complete = match incomplete {
        None => String::from("true"),
        Some(reason) => format!(r#"false,"reason":"{}""#, reason.as_str()),
    };
    format!(r#""recovery":{{"complete":{complete},"position":"{position}","replayed":{replayed}}}"#)
}

/// Encodes the event with the position of a binary frame. Only version 2 has binary frames.
pub(super) fn encode_position(topic: &str, position: StreamPosition) -> Frame {
    v2::encode_with_position(&Delivery {
        topic,
        event: POSITION,
        payload: "{}",
        position,
        sender: Sender::Trigger,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::recovery::Incomplete;

    fn body(json: &str) -> ClientPayload<'_> {
        ClientPayload::Json(serde_json::from_str(json).expect("JSON"))
    }

    #[test]
    fn a_join_asks_with_either_parameter_and_never_wrongly() {
        let position = StreamPosition::default();
        let known = format!(r#"{{"since":"{position}","guardian_token":"x"}}"#);
        let escaped = known.replace(':', "\\u003a").replace("\"since\"\\u003a", "\"since\":");
        let escaped = escaped.replace("\"guardian_token\"\\u003a", "\"guardian_token\":");
        let wants = |since, newest_max| Some(Wanted { since, newest_max });
        for (json, expected) in [
            ("{}", None),
            ("null", None),
            ("[]", None),
            (r#"["since"]"#, None),
            (r#"{"x":{"since":""}}"#, None),
            (r#"{"x":"\"since\""}"#, None),
            (r#"{"since":""}"#, wants(Since::Now, 0)),
            (r#"{"since":null}"#, wants(Since::Now, 0)),
            (&known, wants(Since::Position(position), 0)),
            (&escaped, wants(Since::Position(position), 0)),
            (r#"{"since":"x"}"#, wants(Since::NoPosition, 0)),
            (r#"{"since":12}"#, wants(Since::NoPosition, 0)),
            (r#"{"since":{"epoch":1}}"#, wants(Since::NoPosition, 0)),
            (r#"{"since":"\ud800"}"#, wants(Since::NoPosition, 0)),
            (r#"{"since":"x","since":""}"#, wants(Since::Now, 0)),
            (r#"{"history":5}"#, wants(Since::Now, 5)),
            (r#"{"history":5,"since":"x"}"#, wants(Since::NoPosition, 5)),
            (r#"{"history":0}"#, wants(Since::Now, 0)),
            (r#"{"history":-1}"#, wants(Since::Now, 0)),
            (r#"{"history":1.5}"#, wants(Since::Now, 0)),
            (r#"{"history":"5"}"#, wants(Since::Now, 0)),
            (r#"{"history":null}"#, wants(Since::Now, 0)),
            (r#"{"history":99999999999999999999}"#, wants(Since::Now, 0)),
        ] {
            assert_eq!(wanted(&body(json)), expected, "{json}");
        }
        assert_eq!(wanted(&ClientPayload::Bytes(r#"{"since":""}"#.into())), None);
    }

    #[test]
    fn the_reply_says_what_came_of_it() {
        let position = StreamPosition::default();
        for (incomplete, complete) in [
            (None, "true"),
            (Some(Incomplete::Expired), r#"false,"reason":"expired""#),
            (Some(Incomplete::Epoch), r#"false,"reason":"epoch""#),
            (Some(Incomplete::Unknown), r#"false,"reason":"unknown""#),
            (Some(Incomplete::TooMuch), r#"false,"reason":"too_much""#),
            (Some(Incomplete::Off), r#"false,"reason":"off""#),
        ] {
            let recovery = Recovery { incomplete, position, replayed: 2, frames: Vec::new() };
            let expected = format!(
                r#""recovery":{{"complete":{complete},"position":"AAAAAAAAAAAAAAAAAAAAAA:0","replayed":2}}"#
            );
            assert_eq!(described(&recovery), expected);
        }
    }

    #[test]
    fn the_position_of_a_binary_frame_follows_as_an_event() {
        let frame = encode_position("private:app:room", StreamPosition::default());
        let expected =
            r#"[null,"AAAAAAAAAAAAAAAAAAAAAA:0","private:app:room","herald_position",{}]"#;
        assert_eq!(frame, Frame::Text(expected.into()));
    }
}
