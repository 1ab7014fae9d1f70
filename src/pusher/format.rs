//! The encoding of publications and members for Pusher's clients.
//!
//! It follows sections 3.2, 6 and 8.3 of the document of Pusher's protocol. A topic is Pusher's name of
//! the channel. A publication to a channel without such a name is not encoded, so clients do not receive
//! it.

use std::borrow::Cow;

use crate::broker::{
    JsonText, Sender,
    position::StreamPosition,
    reserved,
    subscriber::{Delivery, Encoders, Format, Frame},
};

use super::{frame, member};

/// The prefix of the events that clients publish.
const CLIENT: &str = "client-";

/// The messages that a subscription is sent in addition to its events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SpokenMessages {
    /// The position of each event.
    pub(super) positions: bool,
    /// The number of subscribers, each time it changes.
    pub(super) counts: bool,
}

/// The format of subscriptions that are sent these messages.
pub(super) fn of(told: SpokenMessages) -> Format {
    Format::of(match (told.positions, told.counts) {
        (false, false) => &PLAIN,
        (false, true) => const { &Encoders { encode_count: Some(encode_count), ..PLAIN } },
        (true, false) => &WITH_POSITIONS,
        (true, true) => const { &Encoders { encode_count: Some(encode_count), ..WITH_POSITIONS } },
    })
}

const PLAIN: Encoders = Encoders {
    slot: 4,
    roster_slot: 1,
    // The closing brace.
    tail_bytes: Some(1),
    has_event: |event| !reserved::is_pusher_event(event),
    carry,
    encode,
    encode_bytes: None,
    encode_position: None,
    encode_count: None,
    positions_follow_json: false,
    begins_with_last_event: true,
    spell_members: member::spell_members,
    encode_change: member::encode_change,
};

const WITH_POSITIONS: Encoders = Encoders {
    slot: 5,
    encode_position: Some(encode_position),
    positions_follow_json: true,
    ..PLAIN
};

/// The JSON of the field `data`: a string that holds the payload's JSON, or the payload itself for a
/// client event.
fn carry<'a>(json: &'a str, event: &str, sender: Sender<'_>) -> Cow<'a, str> {
    let is_client_event = matches!(sender, Sender::Session(_)) && event.starts_with(CLIENT);
    // A payload that is a JSON string is the data already.
    match is_client_event || json.starts_with('"') {
        true => Cow::Borrowed(json),
        false => Cow::Owned(JsonText::of_text(json).as_str().to_owned()),
    }
}

/// Spells an event.
fn encode(delivery: &Delivery<'_, str>) -> Option<Frame> {
    let Delivery { topic, event, payload, sender, .. } = *delivery;
    let user = if let Sender::Session(user) = sender { user } else { None };
    Some(Frame::Text(frame::text(event, Some(topic), user, payload)))
}

/// The event of Herald that tells a position. Its data is the position.
fn encode_position(topic: &str, position: StreamPosition) -> Frame {
    frame::event("herald:position", Some(topic), &position.to_string())
}

/// The event that tells how many subscribers a channel has.
fn encode_count(topic: &str, count: usize) -> Frame {
    let data = format!(r#"{{"subscription_count":{count}}}"#);
    frame::event("pusher_internal:subscription_count", Some(topic), &data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(json: &str, event: &str, sender: Sender<'_>) -> Option<String> {
        if !(PLAIN.has_event)(event) {
            return None;
        }
        let carried = carry(json, event, sender);
        let position = "e:1".parse().ok();
        let frame = encode(&Delivery {
            topic: "presence-a",
            event,
            payload: &*carried,
            position: position.unwrap_or_default(),
            sender,
        })?;
        let Frame::Text(text) = frame else { panic!("no text") };
        Some(text.to_string())
    }

    #[test]
    fn p142_p083_p084_p085_p086_the_data_of_an_event_is_text_and_that_of_a_client_event_as_it_was_sent()
     {
        let user = Sender::Session(Some("u\"1"));
        for (json, event, sender, expected) in [
            (r#""{\"a\" : 1}""#, "e", Sender::Trigger, r#""data":"{\"a\" : 1}""#),
            (r#"{"a" : 1.0}"#, "e", Sender::Trigger, r#""data":"{\"a\" : 1.0}""#),
            ("[1, 2]", "e", Sender::Session(None), r#""data":"[1, 2]""#),
            (r#"{"a":1}"#, "client-e", Sender::Trigger, r#""data":"{\"a\":1}""#),
            (r#"{"a" : 1}"#, "client-e", Sender::Session(None), r#""data":{"a" : 1}"#),
            (r#""x""#, "client-e", Sender::Session(None), r#""data":"x""#),
            ("7", "client-e", user, r#""user_id":"u\"1","data":7"#),
        ] {
            let expected = format!(r#"{{"event":"{event}","channel":"presence-a",{expected}}}"#);
            assert_eq!(spelled(json, event, sender), Some(expected), "{json} {event}");
        }
        for event in ["pusher:x", "pusher_internal:x", "herald:position"] {
            assert_eq!(spelled("1", event, Sender::Trigger), None, "{event}");
        }
    }
}
