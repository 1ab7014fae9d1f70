//! Version 1: a message is a JSON object with the keys `topic`, `event`, `payload` and `ref`.

use bytestring::ByteString;
use serde_json::Deserializer;

use crate::{
    broker::subscriber::{Delivery, Frame},
    json::members,
};

use super::message::{Malformed, Outgoing, RawMessage, push_json_string};

/// Reads an object. All four keys must be there, `join_ref` may be; of duplicates the last counts.
pub(super) fn decode(text: &str) -> Result<RawMessage<'_>, Malformed> {
    let names = ["join_ref", "ref", "topic", "event", "payload"];
    let found = members(Deserializer::from_str(text), names).map_err(|_| Malformed::Message)?;
    let [join_ref, Some(reference), Some(topic), Some(event), Some(payload)] = found else {
        return Err(Malformed::Message);
    };
    Ok(RawMessage { join_ref, reference, topic, event, payload })
}

/// Encodes a message to one client, with exactly four keys.
pub(super) fn encode(outgoing: &Outgoing<'_>) -> String {
    let Outgoing { reference, topic, event, payload, .. } = outgoing;
    object(&topic.to_json(), event, reference.as_json(), payload)
}

/// Encodes a publication. All subscribers of the same topic share the text.
pub(super) fn encode_delivery(delivery: &Delivery<'_, str>) -> Frame {
    let topic = super::message::json_string(delivery.topic);
    Frame::Text(ByteString::from(object(&topic, delivery.event, "null", delivery.payload)))
}

/// Encodes a publication with its position as `ref`.
pub(super) fn encode_with_position(delivery: &Delivery<'_, str>) -> Frame {
    let Delivery { topic, event, payload, position, .. } = delivery;
    let (topic, position) = (super::message::json_string(topic), format!("\"{position}\""));
    Frame::Text(ByteString::from(object(&topic, event, &position, payload)))
}

/// The number of bytes after the payload.
pub(super) const TAIL_BYTES: u8 = 1;

fn object(topic: &str, event: &str, reference: &str, payload: &str) -> String {
    let bytes = topic.len() + event.len() + reference.len() + payload.len();
    // Text without room to spare becomes `Bytes` without a further allocation.
    let mut json =
        String::with_capacity(bytes + r#"{"topic":,"event":"","ref":,"payload":}"#.len());
    json.push_str("{\"topic\":");
    json.push_str(topic);
    json.push_str(",\"event\":");
    push_json_string(&mut json, event);
    json.push_str(",\"ref\":");
    json.push_str(reference);
    json.push_str(",\"payload\":");
    json.push_str(payload);
    json.push('}');
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broker::{Sender, position::StreamPosition},
        phoenix::message::{ClientMessage, ClientPayload, Label, Ref, Version},
    };

    fn json<'a>(message: &ClientMessage<'a>) -> &'a str {
        match &message.payload {
            ClientPayload::Json(json) => json.get(),
            ClientPayload::Bytes(bytes) => panic!("{bytes:?} in a text frame"),
        }
    }

    fn read(text: &str) -> Result<ClientMessage<'_>, Malformed> {
        Version::V1.decode_text(text, 64)
    }

    #[test]
    fn e044_an_extra_join_ref_and_unknown_keys_are_taken() {
        let text =
            r#"{"x":[1],"join_ref":"7","topic":"t","event":"e","payload":{"a":1},"ref":"2"}"#;
        let message = read(text).expect("a message");
        assert_eq!(message.join_ref.as_json(), "\"7\"");
        assert_eq!(message.reference.as_json(), "\"2\"");
        assert_eq!(message.topic, Label::from("t"));
        assert_eq!(message.event, Label::from("e"));
        assert_eq!(json(&message), "{\"a\":1}");
    }

    #[test]
    fn null_values_are_there_and_the_last_duplicate_counts() {
        let text = r#"{"topic":"a","topic":"b","event":"e","payload":null,"ref":null}"#;
        let message = read(text).expect("a message");
        assert!(message.reference.is_null() && message.join_ref.is_null());
        assert_eq!(message.topic, Label::from("b"));
        assert_eq!(json(&message), "null");
    }

    #[test]
    fn e045_e046_a_message_that_lacks_a_key_or_is_no_object_is_malformed() {
        for text in [
            r#"{"event":"e","payload":{},"ref":"1"}"#,
            r#"{"topic":"t","payload":{},"ref":"1"}"#,
            r#"{"topic":"t","event":"e","ref":"1"}"#,
            r#"{"topic":"t","event":"e","payload":{}}"#,
            r#"["1","1","t","e",{}]"#,
            r#"{"topic":"t","event":"e","payload":{},"ref":"1"} x"#,
            "",
            "null",
            "x",
        ] {
            assert_eq!(read(text).err(), Some(Malformed::Message), "{text}");
        }
        let nested = r#"{"topic":"t","event":"e","payload":{},"ref":["1"]}"#;
        assert_eq!(read(nested).err(), Some(Malformed::Ref));
    }

    #[test]
    fn e043_messages_have_exactly_four_keys() {
        let (join_ref, reference) = (&Ref::null(), &Ref::null());
        let topic = &Label::from("room:\"1\"");
        let outgoing =
            Outgoing { join_ref, reference, topic, event: "phx_reply", payload: "{\"a\":1}" };
        let expected = r#"{"topic":"room:\"1\"","event":"phx_reply","ref":null,"payload":{"a":1}}"#;
        assert_eq!(encode(&outgoing), expected);
    }

    #[test]
    fn e108_a_publication_has_a_null_ref() {
        let (payload, position) = ("{ \"n\":1.0 }", StreamPosition::default());
        let (topic, event, sender) = ("public:app", "c:msg", Sender::Trigger);
        let delivery = Delivery { topic, event, payload, position, sender };
        let expected = r#"{"topic":"public:app","event":"c:msg","ref":null,"payload":{ "n":1.0 }}"#;
        assert_eq!(encode_delivery(&delivery), Frame::Text(expected.into()));
        let expected = expected.replace("null", &format!("\"{position}\""));
        assert_eq!(encode_with_position(&delivery), Frame::Text(expected.into()));
    }
}
