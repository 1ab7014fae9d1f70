//! Version 2: a message is the JSON array `[join_ref, ref, topic, event, payload]`.

use std::fmt;

use bytestring::ByteString;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::broker::subscriber::{Delivery, Frame};

use super::message::{Malformed, Outgoing, RawMessage, push_json_string};

/// Reads an array of at least five elements; more are ignored.
pub(super) fn decode(text: &str) -> Result<RawMessage<'_>, Malformed> {
    let Elements([join_ref, reference, topic, event, payload]) =
        serde_json::from_str(text).map_err(|_| Malformed::Message)?;
    Ok(RawMessage { join_ref: Some(join_ref), reference, topic, event, payload })
}

/// Encodes a message to one client.
pub(super) fn encode(outgoing: &Outgoing<'_>) -> String {
    let Outgoing { join_ref, reference, topic, event, payload } = outgoing;
    array(join_ref.as_json(), reference.as_json(), &topic.to_json(), event, payload)
}

/// Encodes a publication. All subscribers of the same topic share the text, so both refs are null.
pub(super) fn encode_delivery(delivery: &Delivery<'_, str>) -> Frame {
    let topic = super::message::json_string(delivery.topic);
    Frame::Text(ByteString::from(array("null", "null", &topic, delivery.event, delivery.payload)))
}

/// Encodes a publication with its position as `ref`.
pub(super) fn encode_with_position(delivery: &Delivery<'_, str>) -> Frame {
    let Delivery { topic, event, payload, position, .. } = delivery;
    let (topic, position) = (super::message::json_string(topic), format!("\"{position}\""));
    Frame::Text(ByteString::from(array("null", &position, &topic, event, payload)))
}

/// The number of bytes after the payload.
pub(super) const TAIL_BYTES: u8 = 1;

fn array(join_ref: &str, reference: &str, topic: &str, event: &str, payload: &str) -> String {
    let bytes = join_ref.len() + reference.len() + topic.len() + event.len() + payload.len();
    // Text without room to spare becomes `Bytes` without a further allocation.
    let mut json = String::with_capacity(bytes + r#"[,,,"",]"#.len());
    json.push('[');
    for part in [join_ref, reference, topic] {
        json.push_str(part);
        json.push(',');
    }
    push_json_string(&mut json, event);
    json.push(',');
    json.push_str(payload);
    json.push(']');
    json
}

struct Elements<'a>([&'a RawValue; 5]);

impl<'de> Deserialize<'de> for Elements<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ElementsVisitor)
    }
}

struct ElementsVisitor;

impl<'de> Visitor<'de> for ElementsVisitor {
    type Value = Elements<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of five")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut next = || seq.next_element()?.ok_or_else(|| A::Error::custom("too short"));
        let elements = [next()?, next()?, next()?, next()?, next()?];
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Elements(elements))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Sender, position::StreamPosition};
    use crate::phoenix::message::{ClientMessage, ClientPayload, Label, Ref, Version};

    fn json<'a>(message: &ClientMessage<'a>) -> &'a str {
        match &message.payload {
            ClientPayload::Json(json) => json.get(),
            ClientPayload::Bytes(bytes) => panic!("{bytes:?} in a text frame"),
        }
    }

    fn read(text: &str) -> Result<ClientMessage<'_>, Malformed> {
        Version::V2.decode_text(text, 64)
    }

    #[test]
    fn e049_elements_beyond_the_fifth_are_ignored() {
        let message = read(r#"["1","2","t","e",[1, 2],{"six":6}]"#).expect("a message");
        assert_eq!(message.join_ref.as_json(), "\"1\"");
        assert_eq!(message.reference.as_json(), "\"2\"");
        assert_eq!(message.topic, Label::from("t"));
        assert_eq!(message.event, Label::from("e"));
        assert_eq!(json(&message), "[1, 2]");
    }

    #[test]
    fn e053_topics_that_are_no_strings_are_echoed_as_they_came() {
        let message = read(r#"[null,1,123,"phx_join",{}]"#).expect("a message");
        assert_eq!(message.topic, Label::Other("123"));
        assert_eq!(message.topic.to_json(), "123");
    }

    #[test]
    fn e048_e050_a_message_that_is_no_array_of_five_is_malformed() {
        let deep = format!("[{}", "[".repeat(200_000));
        for text in [
            r#"["1","1","t","e"]"#,
            r#"{"topic":"t","event":"e","payload":{},"ref":"1"}"#,
            r#"["1","1","t","e",{}] trailing"#,
            r#"["1","1","t","e",{}"#,
            "",
            "[]",
            "hello",
            &deep,
        ] {
            assert_eq!(read(text).err(), Some(Malformed::Message), "{text:.40}");
        }
        for text in [r#"["1",{"nested":1},"t","e",{}]"#, r#"[["1"],"1","t","e",{}]"#] {
            assert_eq!(read(text).err(), Some(Malformed::Ref), "{text}");
        }
    }

    #[test]
    fn messages_are_spelled_in_order() {
        let message = read(r#"["1",4,"room:1","e",{}]"#).expect("a message");
        let ClientMessage { join_ref, reference, topic, .. } = &message;
        let outgoing = Outgoing { join_ref, reference, topic, event: "phx_reply", payload: "{}" };
        assert_eq!(encode(&outgoing), r#"["1",4,"room:1","phx_reply",{}]"#);
        let outgoing = Outgoing { join_ref: &Ref::null(), ..outgoing };
        assert_eq!(encode(&outgoing), r#"[null,4,"room:1","phx_reply",{}]"#);
    }

    #[test]
    fn e107_a_publication_has_null_refs() {
        let (payload, position) = ("{\"n\":1}", StreamPosition::default());
        let (topic, event, sender) = ("public:app", "say \"hi\"", Sender::Trigger);
        let delivery = Delivery { topic, event, payload, position, sender };
        let expected = r#"[null,null,"public:app","say \"hi\"",{"n":1}]"#;
        assert_eq!(encode_delivery(&delivery), Frame::Text(expected.into()));
        let expected = expected.replace("null,\"p", &format!("\"{position}\",\"p"));
        assert_eq!(encode_with_position(&delivery), Frame::Text(expected.into()));
    }
}
